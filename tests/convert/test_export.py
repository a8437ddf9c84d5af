"""`convert.export`: names, bytes, resuming, verification, refusals. Nothing here needs torch."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from aqaa_jax.checkpoint import folder, header
from aqaa_jax.checkpoint.files import load_model, save_file
from aqaa_jax.checkpoint.shards import ShardReader, write_shards
from aqaa_jax.checkpoint.tree import layer_name, named_weights
from aqaa_jax.config import DecoderConfig, SystemConfig, to_dict
from aqaa_jax.convert import export, flow, hift, layout, onnx_file, paraformer, s3, step1, torch_file
from aqaa_jax.convert.export_files import PARAFORMER, TOKENIZER, VOCODER, WEIGHTS, card
from aqaa_jax.convert.part_source import PartSource
from aqaa_jax.convert.published_part import published_part
from aqaa_jax.inference.system import shipped_folder
from aqaa_jax.parts import abstract

ROOT = Path(__file__).parents[2]


def quiet(text):
    pass


def exported(source, destination, **options):
    planned = export.plan(source, dtype="float32", **options)
    export.write(planned, destination, say=quiet)
    return planned


def read_back(planned, directory, part):
    """The tensors in the exported file of ``part``, by published name; of the ONNX file, by torch name."""
    plan = next(t for t in planned.targets if t.part == part).weights.plan
    path = directory / WEIGHTS[part]
    if path.suffix == ".pt":
        raw = {name: b"".join(pieces) for name, pieces in torch_file.read_raw(path, plan)}
        return {name: np.frombuffer(raw[name], t.dtype).reshape(t.shape) for name, t in plan.items()}
    reader = s3.open_onnx(path)[0] if path.suffix == ".onnx" else ShardReader(path)
    return {name: reader.read(name) for name in reader.shapes}


@pytest.fixture(scope="module")
def golden_export(golden_folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden") / "export"
    return exported(golden_folder, directory), directory


def files_of(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("part", ["linguistic", "decoder", "flow"])
def test_published_to_ours_to_published_is_bit_exact(golden_export, published_states, part):
    back, state = read_back(*golden_export, part), published_states[part]
    assert list(back) if part != "decoder" else set(back) == set(state)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_semantic_is_bit_exact_but_for_the_positions_that_are_a_formula(golden_export, published_states):
    back, state = read_back(*golden_export, "semantic"), published_states["semantic"]
    assert set(back) == set(state)
    for name, value in state.items():
        atol = 1.2e-7 if name == s3.POSITIONS else 0  # a unit in the last place of values in (0.5, 1]
        np.testing.assert_allclose(back[name], value, atol=atol, rtol=0, err_msg=name)


def test_hift_has_the_published_tensors_and_the_same_products(golden_export, published_states):
    back, state = read_back(*golden_export, "hift"), published_states["hift"]
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    ours, theirs = hift.fold_weight_norm(back), hift.fold_weight_norm(state)
    assert list(ours) != list(back)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    pairs = [name.removesuffix("_g") for name in back if name.endswith(".weight_g")]
    for name in pairs:  # what PyTorch's float32 makes of them
        g, v = back[f"{name}_g"], back[f"{name}_v"]
        norm = np.sqrt(np.sum(v * v, axis=(1, 2), keepdims=True))
        np.testing.assert_allclose(v * (g / norm), theirs[name], rtol=1e-6, err_msg=name)


def test_paraformer_files(golden_export, golden):
    _, directory = golden_export
    original = golden("paraformer_linguistic/am.mvn").parent
    table = np.load(directory / TOKENIZER / paraformer.CODEBOOK)
    np.testing.assert_array_equal(table, np.load(original / paraformer.CODEBOOK))
    assert table.dtype == np.float32
    for ours, theirs in zip(
        paraformer.read_cmvn(directory / PARAFORMER / paraformer.CMVN),
        paraformer.read_cmvn(original / paraformer.CMVN),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_configurations_come_back(golden_export, golden_config, golden):
    _, directory = golden_export
    c = golden_config
    values = yaml.safe_load((directory / PARAFORMER / "config.yaml").read_text())
    assert paraformer.config_from_upstream(values, c.tokenizer.linguistic.codes) == c.tokenizer.linguistic
    said = onnx_file.read_graph(directory / WEIGHTS["semantic"]).metadata
    values = {key: int(text) if text.isdecimal() else text for key, text in said.items()}
    assert s3.config_from_upstream(values) == c.tokenizer.semantic
    text = (directory / VOCODER / "cosyvoice.yaml").read_text()
    loader = type("Loader", (yaml.SafeLoader,), {})
    tags = []

    def tagged(loader, suffix, node):
        tags.append(suffix)
        return loader.construct_mapping(node, deep=True)

    loader.add_multi_constructor("!new:", tagged)
    values = yaml.load(text, loader)
    published = json.loads(golden("flow_vocoder/config.json").read_text())
    cfm = values["flow"]["decoder"]["cfm_params"]["content"]
    values["flow"]["decoder"]["cfm_params"] = cfm
    assert flow.config_from_upstream(values["flow"]) == c.vocoder.flow
    assert hift.config_from_upstream(values["hift"]) == c.vocoder.hift
    for name, value in published["decoder"]["estimator"].items():
        assert values["flow"]["decoder"]["estimator"][name] == value
    assert len(tags) == 8 and "cosyvoice.flow.flow.MaskedDiffWithXvec" in tags
    assert "aqaa_flow" not in values  # nothing in it that the published code would not know


def test_config_json_is_the_published_one(golden_export, golden):
    values = json.loads((golden_export[1] / "config.json").read_text())
    published = json.loads(golden("step1/config.json").read_text())
    assert {k: values[k] for k in published} == published
    assert set(values) - set(published) == {"auto_map", "tie_word_embeddings"}
    assert values["tie_word_embeddings"] is False
    for reference in values["auto_map"].values():
        module, name = reference.split(".")
        assert f"class {name}(" in (golden_export[1] / f"{module}.py").read_text()


@pytest.mark.parametrize("part", folder.PARTS)
def test_pocket_model_comes_back_bit_exact(tmp_path_factory, mapping, part):
    source, directory = shipped_folder(), tmp_path_factory.mktemp("pocket") / "export"
    config = folder.read_config(source)
    back = read_back(exported(source, directory, parts=(part,)), directory, part)
    loaded = named_weights(load_model(source / f"{part}.safetensors", abstract(config, part)))
    (module, values), extra = mapping(config, part), {}
    if part == "linguistic":
        extra = {
            "cmvn": paraformer.read_cmvn(directory / PARAFORMER / paraformer.CMVN),
            "codebook": np.load(directory / TOKENIZER / paraformer.CODEBOOK),
        }
    weights = module.from_upstream(back, values, **extra)
    assert set(weights) == set(loaded)
    for name, value in loaded.items():
        np.testing.assert_array_equal(weights[name], np.asarray(value), err_msg=name)


def test_decoder_is_bfloat16_by_default_and_the_rest_float32(golden_folder, tmp_path):
    planned = export.plan(golden_folder)
    export.write(planned, tmp_path / "x", say=quiet)
    for part in folder.PARTS:
        expected = "bfloat16" if part == "decoder" else "float32"
        assert {str(v.dtype) for v in read_back(planned, tmp_path / "x", part).values()} == {expected}
    assert json.loads((tmp_path / "x" / "config.json").read_text())["torch_dtype"] == "bfloat16"


class Shapes:
    """A source at full size: shapes, no arrays."""

    def __init__(self, config, part):
        self.weights = named_weights(abstract(config, part))

    def shape(self, name, index=()):
        return tuple(self.weights[name].shape)[len(index) :]


@pytest.mark.parametrize(("embed", "tensors", "total"), [(12288, 795, 263_893_180_416), (3072, 291, 7_059_412_992)])
def test_full_size_plan_is_the_published_one(embed, tensors, total):
    decoder = DecoderConfig()
    if embed == 3072:
        decoder = DecoderConfig(embed=3072, mlp=8192, heads=48, kv_heads=4, head_dim=64, layers=32)
    config = SystemConfig(decoder=decoder)
    plan = published_part("decoder", config, Shapes(config, "decoder"), "bfloat16").plan
    assert {k: v.shape for k, v in plan.items()} == step1.published_shapes(decoder)
    assert len(plan) == tensors
    assert sum(header.nbytes(v) for v in plan.values()) == total
    values = step1.published_config(decoder)
    assert values["hidden_size"] == embed and values["architectures"] == ["Step1ForCausalLM"]
    assert step1.decoder_config(values) == decoder


@pytest.mark.parametrize(("part", "file"), [("flow", "flow_pt_keys_shapes.json"), ("hift", "hift_pt_keys_shapes.json")])
def test_full_size_vocoder_plan_is_the_published_file(part, file):
    published = json.loads((ROOT / "tests" / "vocoder" / "data" / file).read_text())
    config = SystemConfig()
    plan = published_part(part, config, Shapes(config, part), "float32").plan
    assert {k: list(v.shape) for k, v in plan.items()} == published


def test_sharded_source_gives_the_same_files(golden_folder, golden_config, golden_export, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(golden_folder, source)
    whole = ShardReader(source / "decoder.safetensors")
    weights = {n: whole.read(n) for n in whole.shapes}
    (source / "decoder.safetensors").unlink()
    flat = {n: v for n, v in weights.items() if not n.startswith("blocks.")}
    for name in weights.keys() - flat.keys():
        flat |= {layer_name(name, i): layer for i, layer in enumerate(weights[name])}
    plan = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in flat.items()}
    write_shards(source, plan, lambda n: [flat[n]], prefix="decoder", max_bytes=100_000)
    assert len(list(source.glob("decoder-*.safetensors"))) > 2
    exported(source, tmp_path / "x", parts=("decoder",))
    ours, theirs = files_of(tmp_path / "x"), files_of(golden_export[1])
    name = "model-00001-of-00001.safetensors"
    assert ours[name] == theirs[name]


def test_killed_export_is_not_whole_and_goes_on(golden_folder, golden_export, tmp_path):
    """A process that dies at once in the middle of a shard; the next one keeps what was finished."""
    code = """
import os, sys
from aqaa_jax.convert import export
class Killed(export.Progress):
    bytes_done = 0
    def __call__(self, done):
        Killed.bytes_done += done
        if Killed.bytes_done > int(sys.argv[3]):
            os._exit(9)
export.Progress = Killed
export.write(export.plan(sys.argv[1], (), "float32"), sys.argv[2], max_bytes=200_000, say=print)
"""
    planned, destination = export.plan(golden_folder, dtype="float32"), tmp_path / "x"
    after = planned.total - 300_000  # in the second or third of the decoder's shards, which come last
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, golden_folder, destination, str(after)], env=env, timeout=300)
    assert done.returncode == 9
    shards = sorted(destination.glob("model-*.safetensors"))
    assert shards and list(destination.glob(".model*.part"))
    for name in ("config.json", "model.safetensors.index.json"):
        assert not (destination / name).exists()
    with pytest.raises((FileNotFoundError, ValueError), match="whole"):
        export.verify(planned, destination, say=quiet)
    kept = {p: p.stat().st_mtime_ns for p in [*shards, destination / VOCODER / "flow.pt"]}
    export.write(planned, destination, max_bytes=200_000, say=quiet)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert not list(destination.rglob("*.part"))
    assert export.verify(planned, destination, say=quiet) == sum(len(t.weights.plan) for t in planned.targets)
    ours, theirs = files_of(destination), files_of(golden_export[1])
    assert {k: v for k, v in ours.items() if "/" in k} == {k: v for k, v in theirs.items() if "/" in k}
    assert len(shards) < len(list(destination.glob("model-*.safetensors"))) == 3


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("model-00001-of-00001.safetensors", "lm_head.weight"),
        (f"{VOCODER}/flow.pt", "decoder.estimator"),
        (f"{TOKENIZER}/speech_tokenizer_v1.onnx", "encoder"),
        ("config.json", ""),
        (f"{TOKENIZER}/linguistic_tokenizer.npy", ""),
    ],
)
def test_verify_finds_a_flipped_bit(golden_export, tmp_path, file, tensor):
    planned, directory = golden_export
    shutil.copytree(directory, tmp_path / "x")
    path = tmp_path / "x" / file
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4 if path.suffix == ".pt" else -2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=Path(file).name.split("-")[0]):
        export.verify(planned, tmp_path / "x", say=quiet)
    assert export.verify(planned, directory, say=quiet) > 400


def test_only_the_same_export_goes_on(golden_folder, golden_export, tmp_path):
    _, directory = golden_export
    before = files_of(directory)
    with pytest.raises(ValueError, match="another model or dtype"):
        export.write(export.plan(golden_folder, dtype="float16"), directory, say=quiet)
    other = tmp_path / "model"
    shutil.copytree(golden_folder, other)
    (other / "hift.safetensors").touch()
    with pytest.raises(ValueError, match="another model or dtype"):
        export.write(export.plan(other, dtype="float32"), directory, say=quiet)
    assert files_of(directory) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="not empty"):
        export.write(export.plan(golden_folder), tmp_path / "full", say=quiet)
    assert files_of(tmp_path / "full") == {"thesis.tex": b"years"}


def test_bad_sources_are_named_before_anything_is_written(golden_folder, golden_config, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(golden_folder, source)
    with pytest.raises(ValueError, match="'vocoder'"):
        export.plan(source, ("vocoder",))
    with pytest.raises(ValueError, match="int8"):
        export.plan(source, dtype="int8")
    weights = {n: ShardReader(source / "decoder.safetensors").read(n) for n in ("head", "norm.scale")}
    save_file(source / "decoder.safetensors", weights)
    with pytest.raises(ValueError, match=r"decoder\.safetensors.*missing"):
        export.plan(source)
    flow_file = source / "flow.safetensors"
    flow_file.write_bytes(flow_file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"flow\.safetensors.*truncated"):
        export.plan(source, ("flow",))
    (source / "hift.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="hift"):
        export.plan(source, ("hift",))
    wide = dataclasses.replace(golden_config, decoder=dataclasses.replace(golden_config.decoder, head_dim=4))
    with pytest.raises(ValueError, match=r"heads \* head_dim"):
        step1.published_config(wide.decoder)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_notes_say_what_published_programs_do_not_know(golden_config):
    source = shipped_folder()
    told = " ".join(export.plan(source).notes)
    assert "alibi_slopes" in told and "mel_mean -5.0" in told
    cards = [card(config, ("decoder",), "1").decode() for config in (folder.read_config(source), golden_config)]
    assert ["TRITON_ATTN" in text for text in cards] == [False, True]  # vLLM reads no slopes
    values = step1.published_config(folder.read_config(source).decoder)
    assert values["alibi_slopes"][0] == 8.0
    assert step1.decoder_config(values, dtype="float32", param_dtype="float32", scan=False) == dataclasses.replace(
        folder.read_config(source).decoder, max_length=values["max_seq_len"]
    )
    assert "alibi_slopes" not in step1.published_config(golden_config.decoder)


def test_report_reads_headers_only(golden_folder, tmp_path):
    planned = export.plan(golden_folder)
    text = export.report(planned, tmp_path / "x")
    assert "131,392" in text and "GB free" in text and "memory: at most 1.00 GB" in text
    assert not (tmp_path / "x").exists()


def test_row_blocks_and_entries_agree_with_the_whole_mapping(golden_folder, golden_config):
    """Streaming and the in-memory mapping are two readings of one table."""
    source = PartSource(golden_folder, golden_config, "linguistic")
    streamed = published_part("linguistic", golden_config, source, "float32")
    made = layout.by_published(paraformer.entries(golden_config.tokenizer.linguistic))
    fused = "encoder.encoders.1.self_attn.linear_q_k_v.weight"
    assert [entry.piece for entry, index in made[fused] if index == (1,)] == [0, 1, 2]
    assert sum(len(block) for block in streamed.read(fused)) == streamed.plan[fused].shape[0]


@pytest.mark.long
def test_memory_stays_bounded(tmp_path):
    """A decoder of 1.3 GB (zeros) in float32: peak below three times its largest tensor and 1 GB."""
    decoder = DecoderConfig(vocab=60000, embed=1024, mlp=8192, heads=16, kv_heads=4, head_dim=64, layers=8)
    vocab = {"size": 60000, "audio_start": 54880, "linguistic": 1024, "semantic": 4096}
    system = to_dict(SystemConfig(decoder=decoder)) | {"vocab": vocab}
    (tmp_path / "config.json").write_text(json.dumps({"system": system}))
    shutil.copy(shipped_folder() / "tokenizer.model", tmp_path)
    weights = named_weights(abstract(SystemConfig(decoder=decoder), "decoder"))
    plan = {n: jax.ShapeDtypeStruct(w.shape, np.dtype(np.float32)) for n, w in weights.items()}
    with (tmp_path / "decoder.safetensors").open("wb") as stream:
        head = header.encode(plan)
        stream.write(head)
        stream.truncate(len(head) + sum(map(header.nbytes, plan.values())))
    code = "import sys; from aqaa_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "export", str(tmp_path), str(tmp_path / "x"), "--verify"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "verified 75 tensors" in done.stdout
    peak = float(done.stderr.rsplit("peak resident memory ", 1)[1].split()[0])
    largest = 60000 * 1024 * 4 / 1e9
    assert sum(map(header.nbytes, plan.values())) / 1e9 > 3 * largest + 0.3  # else it would prove nothing
    assert peak < 3 * largest + 1.0
