"""The exported ``speech_tokenizer_v1.onnx``: the published names, the codes of the tokenizer here, honest refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.checkpoint import folder
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.codec.s3 import count_vectors
from aqaa_jax.config import SystemConfig
from aqaa_jax.convert import export, onnx_file, onnx_writer, record, s3, s3_graph
from aqaa_jax.convert.export_files import WEIGHTS
from aqaa_jax.convert.importer import Options, import_folder
from aqaa_jax.inference.system import shipped_folder
from aqaa_jax.parts import abstract


def exported(source, destination):
    export.write(export.plan(source, ("semantic",)), destination, say=lambda text: None)
    return destination / WEIGHTS["semantic"]


@pytest.fixture(scope="module")
def golden_file(golden_folder, tmp_path_factory):
    return exported(golden_folder, tmp_path_factory.mktemp("golden") / "export")


@pytest.fixture(scope="module")
def pocket_file(tmp_path_factory):
    return exported(shipped_folder(), tmp_path_factory.mktemp("pocket") / "export")


def weights_and_users(path):
    """Structs of named weights, shapes of anonymous ones, names of the nodes that take a weight."""
    graph = onnx_file.read_graph(path)
    named = {name: w.struct for name, w in graph.weights.items() if not name.startswith("onnx::MatMul_")}
    rest = sorted(w.struct.shape for name, w in graph.weights.items() if name not in named)
    return named, rest, {name for name, node in graph.nodes.items() if graph.weights.keys() & set(node.inputs)}


def test_weights_are_named_laid_out_and_used_as_in_the_published_file(golden_file, golden):
    """The reference file was made with the published names; the one node that no reader asks for is called freely."""
    published = golden("s3_semantic/speech_tokenizer_v1.onnx")
    *ours, our_users = weights_and_users(golden_file)
    *theirs, their_users = weights_and_users(published)
    assert ours == theirs and len(ours[1]) == 13
    assert sorted("Slice" in name for name in our_users ^ their_users) == [True, True]
    strides = [onnx_file.read_graph(path).nodes["/conv1/Conv"].ints["strides"] for path in (golden_file, published)]
    assert strides == [(2,), (2,)]  # what tells it from the 50 Hz file


def test_import_reads_it_bit_for_bit_and_learns_the_heads(pocket_file, tmp_path):
    import_folder(pocket_file.parent, tmp_path / "out", SystemConfig(), Options(), say=str, report=str)
    pocket = folder.read_config(shipped_folder())
    heads = record.read_record(tmp_path / "out", "semantic")["config"]["heads"]
    assert heads == pocket.tokenizer.semantic.heads != pocket.tokenizer.semantic.embed // 64
    model = abstract(pocket, "semantic")
    ours, back = (named_weights(folder.read_part(d, "semantic", model)) for d in (shipped_folder(), tmp_path / "out"))
    assert set(ours) == set(back) and len(ours) == 20
    for name, value in ours.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_a_number_of_heads_that_cannot_be_is_named(pocket_file, tmp_path):
    for text, message in (("x", "n_audio_head is 'x'"), ("3", "width 160 does not divide into 3 heads")):
        raw = pocket_file.read_bytes()
        at = raw.index(b"n_audio_head") + len("n_audio_head") + 2
        (tmp_path / "speech_tokenizer_v1.onnx").write_bytes(raw[:at] + text.encode() + raw[at + 1 :])
        with pytest.raises(ValueError, match=rf"speech_tokenizer_v1.onnx: .*{message}"):
            import_folder(tmp_path, tmp_path / "out", SystemConfig(), Options(), say=str, report=str)


def test_the_published_size_fits_and_a_larger_one_is_refused():
    """130,629,120 parameters, 522.5 MB (and the head); four times as wide is more than a message may hold."""

    def plan(config):
        weights = named_weights(
            abstract(SystemConfig(tokenizer=dataclasses.replace(base, semantic=config)), "semantic")
        )
        blank = {name: np.broadcast_to(np.float32(0), w.shape) for name, w in weights.items()}
        state = s3.layout.write(s3.onnx_entries(config), blank, source="s3")
        state[s3.initializers(config)[s3.POSITIONS]] = np.broadcast_to(
            np.float32(0), (config.max_positions, config.embed)
        )
        return {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in state.items()}

    base = SystemConfig().tokenizer
    found = plan(base.semantic)
    assert sum(int(np.prod(t.shape)) for t in found.values()) == 130_629_120
    assert len(s3_graph.graph(base.semantic).head(found)) < 50_000
    wide = dataclasses.replace(base.semantic, embed=5120, mlp=20480)
    with pytest.raises(ValueError, match=r"has \d\.\d\d GB; an ONNX file holds less than 2.15 GB"):
        s3_graph.graph(wide).head(plan(wide))


def test_verification_finds_what_differs(golden_file, golden_folder, tmp_path):
    planned = export.plan(golden_folder, ("semantic",))
    (target,) = planned.targets
    path, raw = tmp_path / "a.onnx", golden_file.read_bytes()
    head = len(target.format.head(target.weights.plan))
    for content, message in (
        (raw[: head - 1] + b"?" + raw[head:], "graph is not the planned one"),
        (raw[: head + 1] + b"?" + raw[head + 2 :], "tensor 'onnx::MatMul_13' is not where it was planned"),
        (raw + b"?", "goes on behind its last tensor"),
        (raw[:-1], None),
    ):
        path.write_bytes(content)
        found = lambda: {n: b"".join(p) for n, p in target.format.read_raw(path, target.weights.plan)}  # noqa: E731
        if message:
            with pytest.raises(ValueError, match=rf"a.onnx: .*{message}"):
                found()
        else:
            assert len(found()["encoders.positional_embedding"]) == 1500 * 64 * 4 - 1


def test_wrong_blocks_leave_no_file(tmp_path):
    model = onnx_writer.Model("one", (), (), (), {})
    plan = {"a": jax.ShapeDtypeStruct((4, 2), np.float32)}
    with pytest.raises(ValueError, match="'a': got 3 rows"):
        model.write(tmp_path / "a.onnx", plan, lambda name: [np.zeros((3, 2), np.float32)])
    with pytest.raises(ValueError, match="'a' has dtype uint8"):
        model.write(tmp_path / "a.onnx", {"a": jax.ShapeDtypeStruct((4,), np.uint8)}, lambda name: [])
    assert not list(tmp_path.iterdir())


class Session:
    """The exported file in onnxruntime, called as the published code calls it: inputs by place, output flattened."""

    def __init__(self, path):
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx").checker.check_model(str(path), full_check=True)
        self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.signature = [(i.name, i.shape, i.type) for i in (*self.session.get_inputs(), *self.session.get_outputs())]

    def __call__(self, mel_TM, length=None):
        feats, lengths = (i.name for i in self.session.get_inputs())
        length = np.array([len(mel_TM) if length is None else length], np.int32)
        return self.session.run(None, {feats: np.ascontiguousarray(mel_TM.T)[None], lengths: length})[0].flatten()


@pytest.mark.torch
@pytest.mark.parametrize("wave", ["chirp", "speech"])
def test_onnxruntime_gives_the_published_codes(golden_file, golden, wave):
    run, data = Session(golden_file), golden(f"s3_semantic/{wave}.npz")
    feats, length, indices = run.signature
    assert feats == ("feats", [1, 128, "T"], "tensor(float)") and length == ("feats_length", [1], "tensor(int32)")
    assert indices[0] == "indices" and indices[2] == "tensor(int32)"
    mel = data["log_mel"].T
    np.testing.assert_array_equal(run(mel), data["codes"])
    noise = np.random.default_rng(0).normal(size=(37, 128)).astype(np.float32)
    padded = run(np.concatenate([mel, noise]), length=len(mel))  # what lies beyond the length changes nothing
    np.testing.assert_array_equal(padded[: len(data["codes"])], data["codes"])


@pytest.mark.torch
def test_onnxruntime_gives_the_codes_of_the_tokenizer_here_at_any_length(golden_file, pocket_file, golden_folder):
    lengths = np.array([1, 2, 3, 4, 5, 98, 99, 100, 1001, 3000])
    mels = np.random.default_rng(0).normal(size=(len(lengths), max(lengths), 128)).astype(np.float32)
    for directory, path in ((golden_folder, golden_file), (shipped_folder(), pocket_file)):
        model = folder.read_part(directory, "semantic", abstract(folder.read_config(directory), "semantic"))
        run, same = Session(path), []
        for length, mel, ours in zip(lengths, mels, np.asarray(model(jnp.asarray(mels), lengths)), strict=True):
            theirs = run(mel[:length])
            assert theirs.shape == (count_vectors(length),)
            same.append(ours[: len(theirs)] == theirs)
        same = np.concatenate(same)
        assert np.mean(same) >= 0.999 and len(same) > 1000  # two codes may be equally near but for the last bit
