"""``merge`` on real checkpoints: folders, files, shards and Orbax in and out, provenance, refusals, memory."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from aqaa_jax.checkpoint.average import runs
from aqaa_jax.checkpoint.files import read_file, save_file
from aqaa_jax.checkpoint.folder import read_config, read_part
from aqaa_jax.checkpoint.merge import merge
from aqaa_jax.checkpoint.shards import ShardReader, write_one, write_shards
from aqaa_jax.checkpoint.slices import write_slices
from aqaa_jax.checkpoint.store import Saved, Store
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.inference.system import load_system, shipped_folder
from aqaa_jax.nn.linear import Linear
from aqaa_jax.parts import abstract
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
from aqaa_jax.sharding.partition import shard
from aqaa_jax.sharding.rules import STRATEGIES

PARTS = ("linguistic", "semantic", "decoder", "flow", "hift")


def numpy(path):
    """The tensors of a model folder's part as numbers, int8 rows multiplied out."""
    stored = {name: np.asarray(x, np.float64) for name, x in read_file(path).items()}
    for table in [name for name in stored if f"{name}.scale" in stored]:
        stored[table] *= stored.pop(f"{table}.scale")
    return stored


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The shipped model, and two that differ from it in decoder and flow."""
    out = [tmp_path_factory.mktemp("models") / name for name in ("sft1", "sft2", "dpo")]
    for i, folder in enumerate(out):
        shutil.copytree(shipped_folder(), folder)
        if i == 0:
            continue
        for part in ("decoder", "flow"):
            rng, weights = np.random.default_rng(i), read_file(folder / f"{part}.safetensors")
            for name, stored in weights.items():
                x = np.asarray(stored)
                changed = x * (1 + 0.1 * rng.standard_normal(x.shape).astype(np.float32))
                weights[name] = (np.clip(changed, -127, 127) if x.dtype == np.int8 else changed).astype(x.dtype)
            save_file(folder / f"{part}.safetensors", weights)
    return out


def test_model_folders_by_the_papers_recipe(folders, tmp_path):
    told = {}
    about = merge(
        list(zip(folders, (5, 5, 1), strict=True)),
        tmp_path / "out",
        limit=100_000,
        watch=lambda what, total: (told.setdefault(what, [total]), told[what].append)[1],
    )
    for total, *done in told.values():
        assert sum(done) == total
    for part in PARTS:
        file = f"{part}.safetensors"
        got, parts = numpy(tmp_path / "out" / file), [numpy(folder / file) for folder in folders]
        stored, as_first = read_file(tmp_path / "out" / file), read_file(folders[0] / file)
        assert {n: x.dtype for n, x in stored.items()} == {n: x.dtype for n, x in as_first.items()}
        for name, value in got.items():
            expected = (5 * parts[0][name] + 5 * parts[1][name] + parts[2][name]) / 11
            step = {"float16": 2**-11, "int8": 1 / 250}.get(str(stored[name].dtype), 1e-6)
            largest = (
                np.abs(expected).max(axis=-1, keepdims=True) if stored[name].dtype == jnp.int8 else np.abs(expected)
            )
            assert np.all(np.abs(value - expected) <= step * largest + 1e-7), (part, name)
    same = read_file(tmp_path / "out" / "hift.safetensors")
    for name, x in read_file(folders[0] / "hift.safetensors").items():
        assert np.asarray(same[name]).tobytes() == np.asarray(x).tobytes()
    config = read_config(tmp_path / "out")
    assert config == read_config(folders[0])
    read_part(tmp_path / "out", "decoder", abstract(config, "decoder"))  # as `aqaa ask` does
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["provenance"]["merge"]
    assert stored == about and [x["weight"] for x in stored["inputs"]] == [5, 5, 1]
    for folder, x in zip(folders, stored["inputs"], strict=True):
        assert x["path"] == str(folder) and set(x["sha256"]) == {f"{p}.safetensors" for p in PARTS} | {
            "tokenizer.model"
        }
        for name, digest in x["sha256"].items():
            assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert x["provenance"]["recipe"]  # how the input was made
    with safe_open(tmp_path / "out" / "decoder.safetensors", "np") as file:
        assert [x["sha256"] for x in json.loads(file.metadata()["merge"])["inputs"]] == [
            x["sha256"] for x in stored["inputs"]
        ]


@pytest.mark.parametrize("chosen", range(3))
def test_one_weight_returns_that_folder_bit_for_bit(folders, tmp_path, chosen):
    weights = [float(i == chosen) for i in range(3)]
    merge(list(zip(folders, weights, strict=True)), tmp_path / "out", limit=9999)
    for part in PARTS:
        got, expected = (read_file(f / f"{part}.safetensors") for f in (tmp_path / "out", folders[chosen]))
        assert set(got) == set(expected)
        for name, x in expected.items():
            assert got[name].dtype == x.dtype and np.asarray(got[name]).tobytes() == np.asarray(x).tobytes()


def test_another_dtype(folders, tmp_path):
    merge([(folders[0], 1), (folders[1], 1)], tmp_path / "out", dtype=np.float32)
    got = read_file(tmp_path / "out" / "decoder.safetensors")
    assert {str(x.dtype) for x in got.values()} == {"float32"}
    a, b = (numpy(folder / "decoder.safetensors") for folder in folders[:2])
    for name, x in got.items():
        np.testing.assert_allclose(x, (a[name] + b[name]) / 2, rtol=1e-5, atol=1e-7)


def edit_config(where, value):
    def change(folder):
        values = json.loads((folder / "config.json").read_text())
        inner = values["system"]
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value
        (folder / "config.json").write_text(json.dumps(values))

    return change


def edit_decoder(change):
    def apply(folder):
        weights = read_file(folder / "decoder.safetensors")
        change(weights)
        save_file(folder / "decoder.safetensors", weights)

    return apply


BAD = {
    "tokenizer": (
        lambda f: (f / "tokenizer.model").write_bytes(b"x"),
        "b/tokenizer.model: another text tokenizer than",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "b/tokenizer.model: missing"),
    "vocabulary": (
        edit_config(("vocab", "audio_start"), 512),
        "b/config.json: vocab.audio_start is 512, expected 1024",
    ),
    "slopes": (edit_config(("decoder", "alibi_slopes"), [1.0] * 8), "b/config.json: decoder.alibi_slopes is"),
    "no part": (lambda f: (f / "flow.safetensors").unlink(), "b/flow.safetensors: no such weights file"),
    "name": (edit_decoder(lambda w: w.pop("norm.scale")), "b/decoder.safetensors: tensor 'norm.scale' of"),
    "shape": (edit_decoder(lambda w: w.update({"norm.scale": w["norm.scale"][1:]})), "'norm.scale' has shape (255,)"),
    "dtype": (
        edit_decoder(lambda w: w.update({"norm.scale": w["norm.scale"].astype(np.int32)})),
        "'norm.scale' has dtype int32, expected float16",
    ),
    "cut": (
        lambda f: (f / "hift.safetensors").write_bytes((f / "hift.safetensors").read_bytes()[:-9]),
        "b/hift.safetens",
    ),
    "config": (lambda f: (f / "config.json").write_text("{"), "b/config.json: not JSON"),
    "folder": (shutil.rmtree, "b: no such checkpoint"),
    "not a folder": (lambda f: (f / "config.json").unlink(), "b: not a model folder, as others are"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("weight", [1, 0])
def test_folders_that_do_not_fit_are_refused(tmp_path, name, weight):
    change, message = BAD[name]
    shutil.copytree(shipped_folder(), tmp_path / "b")
    change(tmp_path / "b")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        merge([(shipped_folder(), 1), (tmp_path / "b", weight)], tmp_path / "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_how_a_model_is_run_may_differ(folders, tmp_path):
    shutil.copytree(shipped_folder(), tmp_path / "b")
    edit_config(("sampling", "temperature"), 0.123)(tmp_path / "b")
    edit_config(("decoder", "remat"), "full")(tmp_path / "b")
    merge([(folders[0], 1), (tmp_path / "b", 1)], tmp_path / "out")
    assert read_config(tmp_path / "out") == read_config(folders[0])


def test_an_interrupted_folder_is_not_whole_and_can_be_finished(folders, tmp_path):
    inputs, seen = [(folders[0], 1), (folders[1], 1)], []

    def stop(done):
        seen.append(done)
        if sum(seen) > 5_000_000:  # in the second part
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(inputs, tmp_path / "out", watch=lambda what, total: stop if what == "averaging" else lambda done: None)
    assert (tmp_path / "out" / "linguistic.safetensors").exists()
    with pytest.raises(FileNotFoundError, match=r"config.json: missing"):
        load_system(tmp_path / "out")
    merge(inputs, tmp_path / "out")
    read_config(tmp_path / "out")
    with pytest.raises(ValueError, match="out: a model folder already"):
        merge(inputs, tmp_path / "out")


def build(seed):
    return Linear(8, 12, ("embed", "mlp"), rngs=nnx.Rngs(seed), dtype=jnp.bfloat16)


def linears(tmp_path):
    """Three Linear layers: saved from two meshes, and as a safetensors file."""
    rules, paths = STRATEGIES["fsdp_tensor"], [tmp_path / "a", tmp_path / "b", tmp_path / "c.safetensors"]
    for seed, sizes in enumerate(["fsdp=2,tensor=2", "fsdp=4,tensor=2"]):
        stored = Store(paths[seed])
        stored.save(7, shard(build(seed), make_mesh(parse_mesh(sizes)), rules))
        stored.close()
    save_file(paths[2], named_weights(build(2)))
    weights = [{n: np.asarray(x).astype(np.float64) for n, x in named_weights(build(i)).items()} for i in range(3)]
    return paths, {n: ((5 * weights[0][n] + 5 * weights[1][n] + weights[2][n]) / 11) for n in weights[0]}


@pytest.mark.parametrize("limit", [24, 10**6])
def test_meshes_and_files_to_orbax_and_to_a_file(tmp_path, limit):
    paths, expected = linears(tmp_path)
    inputs = list(zip(paths, (5, 5, 1), strict=True))
    about = merge(inputs, tmp_path / "orbax", accumulate=np.float64, limit=limit)
    merge(inputs, tmp_path / "one.safetensors", accumulate=np.float64, limit=limit)
    saved, file = Saved(tmp_path / "orbax"), ShardReader(tmp_path / "one.safetensors")
    assert set(saved.shapes) == set(file.shapes) == set(expected)
    for name, value in expected.items():
        everything = tuple(slice(0, n) for n in value.shape)
        for got in (saved.read(name, everything), file.read(name)):
            np.testing.assert_array_equal(got, value.astype(ml_dtypes.bfloat16))
    assert saved.metadata["merge"] == about
    with safe_open(tmp_path / "one.safetensors", "np") as opened:
        assert json.loads(opened.metadata()["merge"]) == about
    (listed,) = about["inputs"][0]["sha256"].items()
    files = sorted(
        p.relative_to(tmp_path / "a" / "7").as_posix() for p in (tmp_path / "a" / "7").rglob("*") if p.is_file()
    )
    lines = [f"{hashlib.sha256((tmp_path / 'a' / '7' / f).read_bytes()).hexdigest()}  {f}\n" for f in files]
    assert listed == ("7", hashlib.sha256("".join(lines).encode()).hexdigest())
    again = merge([(tmp_path / "orbax", 1), (paths[2], 1)], tmp_path / "again")
    assert again["inputs"][0]["provenance"] == about  # what it was made of is not lost


def test_orbax_bit_for_bit(tmp_path):
    paths, _ = linears(tmp_path)
    merge(list(zip(paths, (0, 3, 0), strict=True)), tmp_path / "out")
    stored = Store(tmp_path / "out")
    restored = named_weights(stored.restore(0, build(9)))
    stored.close()
    for name, value in named_weights(build(1)).items():
        assert np.asarray(restored[name]).tobytes() == np.asarray(value).tobytes()


def test_shards_in_the_published_layout(tmp_path):
    arrays = [{f"w{i}": np.random.default_rng([j, i]).standard_normal((4, 6)) for i in range(5)} for j in range(2)]
    for j, weights in enumerate(arrays):
        plan = {n: jax.ShapeDtypeStruct(x.shape, np.float32) for n, x in weights.items()}
        write_shards(tmp_path / str(j), plan, lambda n, w=weights: [w[n].astype(np.float32)], max_bytes=200)
    merge([(tmp_path / "0", 1), (tmp_path / "1", 3)], tmp_path / "out.safetensors")
    for name, x in read_file(tmp_path / "out.safetensors").items():
        np.testing.assert_allclose(x, arrays[0][name] / 4 + arrays[1][name] * 3 / 4, rtol=1e-5, atol=1e-7)


def test_outputs_that_exist_are_not_touched(tmp_path):
    paths, _ = linears(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for output in (paths[0], paths[2], tmp_path):
        with pytest.raises(ValueError, match="exists"):
            merge([(paths[0], 1), (paths[2], 1)], output)
    shutil.copyfile(paths[2], tmp_path / "d-00001.safetensors")
    with pytest.raises(ValueError, match=r"d-00001.safetensors: exists"):
        merge([(paths[2], 1)], tmp_path / "d.safetensors")
    assert before == {p: p.read_bytes() for p in before}


def test_a_model_folder_and_a_file_do_not_mix(tmp_path):
    with pytest.raises(ValueError, match=r"decoder.safetensors: not a model folder, as others are"):
        merge([(shipped_folder(), 1), (shipped_folder() / "decoder.safetensors", 1)], tmp_path / "out")


def test_unequal_integers_leave_nothing(tmp_path):
    for name in ("a", "b"):
        ids = np.arange(6) + (name == "b")
        save_file(tmp_path / f"{name}.safetensors", {"x": np.ones(3, np.float32), "ids": ids.astype(np.int32)})
    inputs = [(tmp_path / "a.safetensors", 1), (tmp_path / "b.safetensors", 1)]
    for output in ("out", "out.safetensors"):
        with pytest.raises(ValueError, match=r"b.safetensors: tensor 'ids' \(int32\) differs from that of"):
            merge(inputs, tmp_path / output)
        assert not (tmp_path / output).exists()


PEAK = """
import sys
from aqaa_jax.checkpoint.merge import merge
def highest():  # of this process alone; getrusage starts from the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
start = highest()
merge([(path, 1.0 + i) for i, path in enumerate(sys.argv[2:])], sys.argv[1])
print(start, highest())
"""


class Noise:
    """A checkpoint of any size that does not compress away: each row is a run of one long noise."""

    LONG = np.random.default_rng(0).standard_normal(1_000_003, np.float32).astype(ml_dtypes.bfloat16)

    def __init__(self, plan, seed):
        self.shapes, self.seed = plan, seed

    def read(self, name, rows):
        *rows, last = rows
        out = np.empty([s.stop - s.start for s in (*rows, last)], self.shapes[name].dtype)
        for index in np.ndindex(*out.shape[:-1]):
            place = sum((s.start + i) * prime for s, i, prime in zip(rows, index, (7919, 104729), strict=False))
            start = (place + 15_485_863 * self.seed) % 900_000 + last.start
            out[index] = self.LONG[start : start + out.shape[-1]]
        return out


def peak(output: Path, inputs: list[Path]) -> float:
    """How far a merge's resident memory rises above that of the imported program, in MB."""
    command = [sys.executable, "-c", PEAK, str(output), *map(str, inputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    start, end = map(int, done.stdout.split())
    return (end - start) / 1e3


@pytest.mark.long
@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
def test_memory_stays_within_a_few_slices(tmp_path, kind):
    """Two checkpoints of 3.2 GB, tensors of 1.6 GB: memory is that of a few boxes, plus a chunk of each Orbax input."""
    plan = {"stack": (4, 8192, 24576), "table": (32768, 24576)}
    plan = {name: jax.ShapeDtypeStruct(shape, ml_dtypes.bfloat16) for name, shape in plan.items()}
    paths, output = [tmp_path / "a", tmp_path / "b"], tmp_path / "out"
    if kind == "safetensors":
        paths, output = [path.with_suffix(".safetensors") for path in paths], output.with_suffix(".safetensors")
    for seed, path in enumerate(paths):
        noise = Noise(plan, seed)
        if kind == "safetensors":
            write_one(tmp_path, plan, lambda name, n=noise: runs(n, name), prefix=path.stem)
        else:  # in chunks like those that Store saves from a mesh
            write_slices(path, noise, chunks={"stack": (4, 1024, 6144), "table": (2048, 12288)}, limit=1 << 25)
    risen = peak(output, paths)
    print(f"{kind}: {risen:.0f} MB above the start")
    reader = ShardReader(output) if kind == "safetensors" else Saved(output)
    for name, box in {"stack": np.s_[3:4, 5000:5003, 0:24576], "table": np.s_[30000:30002, 0:24576]}.items():
        a, b = (Noise(plan, seed).read(name, box).astype(np.float32) for seed in range(2))
        np.testing.assert_allclose(reader.read(name, box).astype(np.float32), (a + 2 * b) / 3, rtol=2**-8, atol=1e-6)
    shutil.rmtree(tmp_path)
    assert risen < (250 if kind == "safetensors" else 700)  # two chunks of 50 MB and TensorStore's caches come on top
