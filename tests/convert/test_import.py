"""Published file sets to a model that answers, bit for bit; resuming; every tensor accounted for; bad input."""

import dataclasses
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_files import copy_golden, numpy_weights, step1_config, write_step1, write_system
from safetensors.numpy import load_file, save_file

from aqaa_jax.checkpoint import folder, header, shards
from aqaa_jax.checkpoint.shards import ShardReader
from aqaa_jax.config import DecoderConfig, MeshConfig, SystemConfig, TokenizerConfig, VocabConfig, VocoderConfig
from aqaa_jax.convert import flow, hift, importer, paraformer, s3, step1
from aqaa_jax.convert.importer import Options, import_folder
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.inference.system import load_system, shipped_folder
from aqaa_jax.parts import abstract
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import shardings
from aqaa_jax.sharding.rules import strategy

TINY = DecoderConfig(
    vocab=24, embed=8, mlp=12, heads=4, kv_heads=2, head_dim=2, layers=3, dtype="float32", param_dtype="float32"
)
BASE = SystemConfig(decoder=TINY, vocab=VocabConfig(size=24, audio_start=16, linguistic=4, semantic=4))
RNG = np.random.default_rng(0)
STATE = {n: RNG.standard_normal(s).astype(np.float32) for n, s in step1.published_shapes(TINY).items()}
UP = "model.layers.2.mlp.up_proj.weight"


def quiet(*_):
    pass


def run(source, target, base=BASE, *, given=False, **options):
    return import_folder(source, target, base, Options(**options), given=given, say=quiet, report=quiet)


def tiny(directory, state=None, **config):
    write_step1(directory, STATE if state is None else state, step1_config(TINY) | config)
    return directory


def decoder(target, config=TINY, **options):
    part = abstract(SystemConfig(decoder=config), "decoder")
    return numpy_weights(folder.read_part(target, "decoder", part, **options))


def expected(config=TINY, state=None):
    return step1.from_upstream(STATE if state is None else state, config)


def equal(got, wanted):
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The shipped pocket model as three published folders."""
    directory, system = tmp_path_factory.mktemp("published"), load_system()
    write_system(directory, system, shipped_folder() / folder.TEXT_MODEL)
    return directory, system


def test_published_folders_become_a_model_that_answers(published, tmp_path):
    directory, system = published
    for name in ("vocoder", "llm", "tokenizer"):
        with pytest.raises(FileNotFoundError):
            folder.read_config(tmp_path)
        accounts = run(directory / name, tmp_path, system.config, given=True, verify=True, shard_bytes=4_000_000)
        assert not any(a.missing or a.unexpected or a.wrong for a in accounts)
    assert list(accounts[0].aside) == ["decoder.bias"]
    config = folder.read_config(tmp_path)
    assert config == system.config
    assert json.loads((tmp_path / "config.json").read_text())["parts"] == list(folder.PARTS)
    assert len(list(tmp_path.glob("decoder-*-of-*.safetensors"))) > 5
    again = load_system(tmp_path)
    equal(numpy_weights(again.decoder), numpy_weights(system.decoder))
    equal(numpy_weights(again.tokenizer), numpy_weights(system.tokenizer))
    equal(numpy_weights(again.vocoder.flow), numpy_weights(system.vocoder.flow))
    for name, value in numpy_weights(system.vocoder.hift).items():  # weight norm is divided out and in
        np.testing.assert_allclose(numpy_weights(again.vocoder.hift)[name], value, rtol=3e-7, err_msg=name)
    wav = np.sin(np.arange(16000) / 9).astype(np.float32)
    first, second = (Aqaa(s).ask(wav, sample_rate=16000, speak=False) for s in (system, again))
    np.testing.assert_array_equal(first.tokens, second.tokens)


@pytest.mark.parametrize("shard_bytes", [700, 10**9])
def test_step1_round_trip_is_exact(tmp_path, shard_bytes):
    run(tiny(tmp_path / "in"), tmp_path / "out", shard_bytes=shard_bytes)
    equal(decoder(tmp_path / "out"), expected())
    assert ShardReader(tmp_path / "out", "decoder").shapes["blocks.2.attention.wq"].shape == (8, 4, 2)


def test_shards_without_an_index(tmp_path):
    """As Step-Audio-TTS-3B has its one; a shard too few is told as missing tensors."""
    source = tiny(tmp_path / "in")
    (source / "model.safetensors.index.json").unlink()
    run(source, tmp_path / "out")
    equal(decoder(tmp_path / "out"), expected())
    (source / "model-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"in: tensor 'model\..*' of shape .* is missing \(\d+ missing in all\)"):
        run(source, tmp_path / "new")


def test_golden_step1(golden, tmp_path):
    copy_golden(golden, "step1", tmp_path / "in", "model.safetensors", "config.json")
    config = step1.decoder_config(json.loads(golden("step1/config.json").read_text()))
    base = SystemConfig(vocab=VocabConfig(size=384, audio_start=350, linguistic=10, semantic=10))
    run(tmp_path / "in", tmp_path / "out", base)
    equal(decoder(tmp_path / "out", config), expected(config, load_file(golden("step1/model.safetensors"))))


def test_golden_vocoder_and_tokenizer(golden, tmp_path):
    """The ONNX file, with its anonymous matrices, and the vocoder under weight norm, sizes read from the files."""
    copy_golden(golden, "s3_semantic", tmp_path / "in", "speech_tokenizer_v1.onnx")
    values = json.loads(golden("s3_semantic/config.json").read_text())
    config = s3.config_from_upstream(values)
    base = SystemConfig(tokenizer=TokenizerConfig(semantic=config), vocab=VocabConfig(semantic=512))
    run(tmp_path / "in", tmp_path / "out", base, given=True)
    got = numpy_weights(folder.read_part(tmp_path / "out", "semantic", abstract(base, "semantic")))
    equal(got, s3.from_upstream(load_file(golden("s3_semantic/model.safetensors")), config))
    for name, module in (("flow_vocoder/flow", flow), ("hift/hift", hift)):
        part, values = name.split("/")[1], json.loads(golden(f"{name.split('/')[0]}/config.json").read_text())
        source = tmp_path / part
        copy_golden(golden, name.split("/")[0], source, f"{part}.safetensors")
        (source / "cosyvoice.yaml").write_text(json.dumps({part: values}))  # JSON is YAML
        base = SystemConfig(vocab=VocabConfig(semantic=512))
        run(source, tmp_path / "out", base)
        config = module.config_from_upstream(values)
        system = SystemConfig(vocoder=VocoderConfig(**{part: config}))
        state = load_file(golden(f"{name}.safetensors"))
        got = numpy_weights(folder.read_part(tmp_path / "out", part, abstract(system, part)))
        equal(got, module.from_upstream(state, config))


def test_golden_paraformer(golden, tmp_path):
    files = ("model.safetensors", "config.yaml", "am.mvn", "linguistic_tokenizer.npy")
    copy_golden(golden, "paraformer_linguistic", tmp_path / "in", *files)
    base = SystemConfig(vocab=VocabConfig(linguistic=256))
    (account,) = run(tmp_path / "in", tmp_path / "out", base)
    config, weights, unused = paraformer.read_folder(tmp_path / "in")
    assert sorted(account.aside) == unused
    system = SystemConfig(tokenizer=TokenizerConfig(linguistic=config))
    equal(numpy_weights(folder.read_part(tmp_path / "out", "linguistic", abstract(system, "linguistic"))), weights)
    aside = ShardReader(tmp_path / "out", "linguistic.aside")
    state = load_file(tmp_path / "in" / "model.safetensors")
    assert all(np.array_equal(aside.read(name), state[name]) for name in unused)


def test_foreign_prefixes_and_a_vision_tower(tmp_path):
    """As Step-Audio-AQAA may be: found by suffix and shape, what is not ours kept aside."""
    state = {f"language.{n}" if n != "lm_head.weight" else "text.lm_head.weight": a for n, a in STATE.items()}
    vision = {
        "vision_model.layers.0.self_attn.q_proj.weight": np.ones((6, 6), np.float32),
        "vision_model.norm.weight": np.ones(6, np.float32),
        "vit_downsampler.bias": np.arange(4, dtype=np.float32),
    }
    tiny(tmp_path / "in", state | vision)
    (account,) = run(tmp_path / "in", tmp_path / "out")
    equal(decoder(tmp_path / "out"), expected())
    assert set(account.aside) == set(vision) and not account.unexpected
    aside = ShardReader(tmp_path / "out", "decoder.aside")
    equal({name: aside.read(name) for name in aside.shapes}, vision)
    report = json.loads((tmp_path / "out" / "decoder.import.json").read_text())["account"]
    assert set(report["aside"]) == set(vision) and len(report["used"]) == len(STATE)
    assert "3 aside" in account.text() and "vit_downsampler.bias  float32 [4]" in account.text()
    extra = {"language.model.layers.0.self_attn.q_proj.bias": np.ones(8, np.float32)}
    tiny(tmp_path / "more", state | extra)
    with pytest.raises(ValueError, match=r"q_proj.bias' is unexpected"):
        run(tmp_path / "more", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    run(tmp_path / "more", tmp_path / "new", keep_unexpected=True)
    assert list(ShardReader(tmp_path / "new", "decoder.aside").shapes) == list(extra)


def test_dtype_of_the_file_and_another(tmp_path):
    state = {n: a.astype(jnp.bfloat16) for n, a in STATE.items()}
    tiny(tmp_path / "in", state, torch_dtype="bfloat16")
    run(tmp_path / "in", tmp_path / "out")
    wanted = expected(state={n: a.view(np.uint16) for n, a in state.items()})
    config = step1.decoder_config(step1_config(TINY, "bfloat16"))
    got = decoder(tmp_path / "out", config)
    equal({n: a.view(np.uint16) for n, a in got.items()}, wanted)
    run(tmp_path / "in", tmp_path / "out", dtype="float32")
    equal(decoder(tmp_path / "out"), expected(state={n: a.astype(np.float32) for n, a in state.items()}))


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def test_goes_on_after_a_kill(tmp_path, monkeypatch):
    source = tiny(tmp_path / "in")
    before = {p: p.read_bytes() for p in source.iterdir()}
    reads, blocks = [], importer.layout.blocks

    def counting(entry, load, dtype):
        reads.append(entry.ours)
        if len(reads) == kill_at:
            raise Killed
        return blocks(entry, load, dtype)

    monkeypatch.setattr(importer.layout, "blocks", counting)
    kill_at = 20
    with pytest.raises(Killed):
        run(source, tmp_path / "out", shard_bytes=1500)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "decoder.import.json" not in names and "decoder.safetensors.index.json" not in names
    assert any(name.startswith("decoder-00001-of-") for name in names)
    with pytest.raises(FileNotFoundError, match="not \\(known to be\\) whole"):
        decoder(tmp_path / "out")
    done, kill_at = set(reads[:-1]), -1
    reads.clear()
    run(source, tmp_path / "out", shard_bytes=1500)
    assert 0 < len(reads) < len(STATE) and len(done & set(reads)) < len(done)
    equal(decoder(tmp_path / "out"), expected())
    reads.clear()
    run(source, tmp_path / "out", shard_bytes=1500)  # whole: nothing to do
    assert reads == []
    assert before == {p: p.read_bytes() for p in source.iterdir()}


def cut(directory):
    path = directory / "model-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def swap_index(directory):
    path = directory / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00003", "model-00001"))


def replace(directory, **tensors):
    tiny(directory, STATE | tensors)


def without(directory):
    tiny(directory, {n: a for n, a in STATE.items() if n != UP})


BAD = [
    (cut, r"model-00002.safetensors: .*tensor '.*' ends at byte \d+.*truncated"),
    (swap_index, r"index.json: names tensor '.*' in model-00001.safetensors, which does not hold it"),
    (lambda d: replace(d, **{UP: STATE[UP].astype(np.int32)}), rf"in: tensor '{UP}' has dtype int32, expected floats"),
    (lambda d: replace(d, **{UP: STATE[UP].astype(np.float16)}), rf"'{UP}' has dtype float16, expected float32"),
    (lambda d: replace(d, **{UP: STATE[UP].T.copy()}), rf"'{UP}' has shape \(8, 12\), expected \(12, 8\)"),
    (without, rf"'{UP}' of shape \(12, 8\) is missing \(1 missing in all\)"),
    (lambda d: (d / "config.json").write_text("{"), r"config.json: not JSON"),
    (lambda d: (d / "config.json").write_text('{"vocab_size": 3}'), r"config.json: Step1 config lacks 'hidden_size'"),
    (lambda d: [p.unlink() for p in d.glob("model*")], r"in: holds no published files; expected config.json with"),
]


@pytest.mark.parametrize(("harm", "message"), BAD)
def test_bad_step1_files_are_named_and_nothing_is_written(tmp_path, harm, message):
    source = tiny(tmp_path / "in")
    harm(source)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_vocoder_and_tokenizer_files_are_named(published, golden, tmp_path):
    directory, system = published
    for name in ("vocoder", "tokenizer"):
        (tmp_path / name).mkdir()
    yaml_text = (directory / "vocoder" / "cosyvoice.yaml").read_text()
    state = load_file(directory / "vocoder" / "hift.safetensors")
    save_file({n: a for n, a in state.items() if n != "conv_pre.weight_g"}, tmp_path / "vocoder" / "hift.safetensors")

    def fails(folder_name, message, base=None, **options):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(tmp_path / folder_name, tmp_path / "out", base or SystemConfig(), **options)
        assert not (tmp_path / "out").exists()

    yaml_file = tmp_path / "vocoder" / "cosyvoice.yaml"
    fails("vocoder", r"cosyvoice.yaml: missing")
    for text, message in [
        ("a: [", r"cosyvoice.yaml: not YAML"),
        ("sample_rate: 1", r"cosyvoice.yaml: has no section 'hift'"),
        (yaml_text.replace("    nsf_sigma", "    other"), r"cosyvoice.yaml: section 'hift' lacks 'nsf_sigma'"),
        (yaml_text.replace("<sample_rate>", "<rate>"), r"cosyvoice.yaml: refers to 'rate', which it does not have"),
        (yaml_text, r"'conv_pre.weight_g' is missing"),
    ]:
        yaml_file.write_text(text)
        fails("vocoder", message)
    yaml_file.write_text(yaml_text.replace("solver: 'euler'", "solver: 'rk4'"))
    (tmp_path / "vocoder" / "hift.safetensors").rename(tmp_path / "vocoder" / "flow.safetensors")
    fails("vocoder", r"section 'flow': published flow field 'solver' is 'rk4'; expected 'euler'")
    fails("vocoder", r"holds no files of the part 'hift'", parts=("hift",))
    onnx = tmp_path / "tokenizer" / "speech_tokenizer_v1.onnx"
    whole = golden("s3_semantic/speech_tokenizer_v1.onnx").read_bytes()
    for content, message in [
        (b"hello, this is text", r"speech_tokenizer_v1.onnx: not a readable ONNX file"),
        (whole[:-200_000], r"speech_tokenizer_v1.onnx: not a readable ONNX file .*truncated"),
        (fifty_hertz(whole), r"first convolution has stride 1: this is the 50 Hz tokenizer"),
        (whole, r"semantic.codes is 512, vocab.semantic is 4096; give a --config"),
    ]:
        onnx.write_bytes(content)
        fails("tokenizer", message)
    fails("tokenizer", r"semantic.embed is 64; the given config has \d+", system.config, given=True)


def test_a_vocoder_folder_leaves_the_tokenizer_to_its_own(published, golden, tmp_path):
    directory, system = published
    shutil.copytree(directory / "vocoder", tmp_path / "in")
    copy_golden(golden, "s3_semantic", tmp_path / "in", "speech_tokenizer_v1.onnx")
    said = []
    options = Options(dry_run=True)
    accounts = import_folder(tmp_path / "in", tmp_path / "out", system.config, options, report=said.append)
    assert [a.part for a in accounts] == ["flow", "hift"] and any("left out" in line for line in said)
    base = dataclasses.replace(SystemConfig(), vocab=VocabConfig(semantic=512))
    (account,) = run(tmp_path / "in", tmp_path / "out", base, parts=("semantic",), dry_run=True)
    assert account.part == "semantic"


def test_folders_that_may_be_two_things(golden, tmp_path):
    files = ("model.safetensors", "config.json", "am.mvn", "linguistic_tokenizer.npy")
    copy_golden(golden, "paraformer_linguistic", tmp_path / "one", *files)
    base = SystemConfig(vocab=VocabConfig(linguistic=256))
    (account,) = run(tmp_path / "one", tmp_path / "out", base, dry_run=True)  # its config.json is no Step1
    assert account.part == "linguistic"
    copy_golden(golden, "paraformer_linguistic", tmp_path / "two", *files)
    with pytest.raises(ValueError, match=r"am.mvn is in .*one and in .*two; name one"):
        run(tmp_path, tmp_path / "out", base)


def fifty_hertz(raw):
    """The ONNX file with stride 1 in its first convolution: attribute ``strides``, one integer."""
    at = raw.index(b"strides", raw.index(b"/conv1/Conv"))
    head, tail = raw[: at + 7], raw[at + 7 :]
    value = tail[:6].index(b"\x02", 1)
    return head + tail[:value] + b"\x01" + tail[value + 1 :]


def test_a_full_disk_stops_it_before_and_midway(tmp_path, monkeypatch):
    source = tiny(tmp_path / "in")
    usage = shards.shutil._ntuple_diskusage
    with monkeypatch.context() as m:
        m.setattr(shards.shutil, "disk_usage", lambda path: usage(9, 9, 1000))
        with pytest.raises(OSError, match=r"out: 0.00 GB to write, 0.00 GB free"):
            run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shards.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert main(["import", str(source), str(tmp_path / "out"), "--config", str(config_file(tmp_path))]) == 2


def test_nothing_of_others_is_overwritten(tmp_path):
    source = tiny(tmp_path / "in")
    before = {p: p.read_bytes() for p in source.iterdir()}
    with pytest.raises(ValueError, match=r"in: is the source"):
        run(source, source)
    with pytest.raises(ValueError, match=r"in/config.json: not written by an import"):
        run(tiny(tmp_path / "more"), source)
    assert before == {p: p.read_bytes() for p in source.iterdir()}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "decoder.safetensors").write_bytes(b"trained for a week")
    with pytest.raises(ValueError, match=r"decoder.safetensors: not written by an import"):
        run(source, tmp_path / "out")
    assert [p.read_bytes() for p in (tmp_path / "out").iterdir()] == [b"trained for a week"]


def test_verify_finds_a_changed_byte(tmp_path):
    source = tiny(tmp_path / "in")
    run(source, tmp_path / "out", verify=True)
    (path,) = (tmp_path / "out").glob("decoder-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match=r"decoder-00001-of-00001.safetensors: has sha256"):
        run(source, tmp_path / "out", verify=True)


def main(argv):
    return importlib.import_module("aqaa_jax.cli.main").main(argv)


def config_file(directory):
    path = directory / "tiny.py"
    path.write_text(
        "import ml_collections\nfrom aqaa_jax.config import *\nfrom aqaa_jax.config import to_dict\n"
        f"def get_config():\n    return ml_collections.ConfigDict(to_dict({BASE!r}))\n"
    )
    return path


def test_command_line(tmp_path, capsys):
    source, config = tiny(tmp_path / "in"), config_file(tmp_path)
    arguments = ["import", str(source), str(tmp_path / "out"), "--config", str(config)]
    assert main([*arguments, "--dry-run", "--mesh", "fsdp=2,tensor=2"]) == 0
    out = capsys.readouterr().out
    assert (
        "decoder: 30 tensors used" in out and "would write" in out and "on each device of a mesh fsdp=2,tensor=2" in out
    )
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--mesh", "tensor=4"]) == 2
    assert "'kv_heads' of size 2 does not split evenly over 4" in capsys.readouterr().err
    assert main([*arguments, "--verify"]) == 0
    told = capsys.readouterr().err
    assert "MB/s" in told and "still to import: linguistic, semantic, flow, hift" in told and "peak resident" in told
    equal(decoder(tmp_path / "out"), expected())
    for bad, message in [
        (["--dtype", "int8"], "dtype is 'int8'; expected one of"),
        (["--shard-gb", "0"], "--shard-gb is 0.0"),
        (["--mesh", "2,x"], "mesh is '2,x'; expected sizes by name"),
        (["--config", "none.py"], "none.py"),
    ]:
        assert main([*arguments, *bad]) == 2
        assert message in capsys.readouterr().err
    assert main(["import", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "nothing: no such folder" in capsys.readouterr().err


def test_shards_are_placed_on_a_mesh_as_they_are_read(tmp_path, monkeypatch):
    run(tiny(tmp_path / "in"), tmp_path / "out", shard_bytes=700)
    part = abstract(SystemConfig(decoder=TINY), "decoder")
    places = shardings(part, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), strategy("fsdp_tensor"))
    sizes, read = [], ShardReader.read

    def recording(self, name, rows=None):
        out = read(self, name, rows)
        sizes.append((name, out.shape))
        return out

    monkeypatch.setattr(ShardReader, "read", recording)
    model = folder.read_part(tmp_path / "out", "decoder", part, shardings=places)
    wq = model.blocks.attention.wq.get_value()
    assert wq.sharding.shard_shape(wq.shape) == (3, 4, 2, 2)
    assert {shape for name, shape in sizes if name == "blocks.1.attention.wq"} == {(4, 2, 2)}
    equal(numpy_weights(model), expected())


def test_missing_layers_are_told(tmp_path):
    run(tiny(tmp_path / "in"), tmp_path / "out")
    more = abstract(SystemConfig(decoder=dataclasses.replace(TINY, layers=4)), "decoder")
    with pytest.raises(ValueError, match=r"has shape \(3, .*expected \(4, "):
        folder.read_part(tmp_path / "out", "decoder", more)


def test_dry_run_at_full_size_reads_headers_only(tmp_path):
    """Step-Audio-AQAA with a vision tower at 130 B: shards of 264 GB that take no disk, since no byte is written."""
    config = DecoderConfig()
    plan = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16) for n, s in step1.published_shapes(config).items()}
    vision = {f"vision_model.blocks.{i}.mlp": jax.ShapeDtypeStruct((15360, 1792), jnp.bfloat16) for i in range(63)}
    weight_map = {}
    for file, tensors in shards.plan_shards(plan | vision, "model", 10**10).items():
        head = header.encode(tensors)
        with (tmp_path / file).open("wb") as stream:
            stream.write(head)
            stream.truncate(shards.size_of(head, tensors))
        weight_map |= dict.fromkeys(tensors, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(step1_config(config, "bfloat16")))
    said = []
    options = Options(dry_run=True, mesh=MeshConfig(fsdp=16, tensor=8))
    (account,) = import_folder(tmp_path, tmp_path / "out", SystemConfig(), options, given=True, report=said.append)
    assert len(account.used) == 795 and len(account.aside) == 63
    assert said[0].startswith("decoder: 795 tensors used (263.893 GB), 63 aside, 0 missing, 0 unexpected, 0 wrong")
    # 1/128 of the matrices, and all of the 177 norms
    assert said[1] == "decoder: 2.066 GB on each device of a mesh fsdp=16,tensor=8 (fsdp_tensor)"
    assert said[2].startswith("decoder: would write 263.893 GB and 3.468 GB aside, with at most 6.51 GB of memory")
