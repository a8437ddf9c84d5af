"""Shards: exact round trips, slices, resuming, and errors that name file and tensor."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aqaa_jax.checkpoint import shards
from aqaa_jax.checkpoint.shards import ShardReader, verify, write_one, write_shards

RNG = np.random.default_rng(0)
ARRAYS = {
    "wide": RNG.standard_normal((6, 5, 4)).astype(np.float32),
    "half": RNG.standard_normal((7, 3)).astype(jnp.bfloat16),
    "count": np.arange(3, dtype=np.int64),
    "one": np.asarray(2.5, np.float32),
    "none": np.zeros((0, 4), np.float16),
    "tail": RNG.standard_normal((9,)).astype(np.float32),
}
PLAN = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in ARRAYS.items()}


def blocks(name):
    array = ARRAYS[name]
    return [array] if array.ndim == 0 else np.array_split(array, 3)


def write(directory, read=blocks, plan=PLAN, **options):
    return write_shards(directory, plan, read, max_bytes=110, **options)


def same(reader):
    assert set(reader.shapes) == set(ARRAYS)
    for name, array in ARRAYS.items():
        got = reader.read(name)
        assert got.dtype == array.dtype and got.shape == array.shape
        np.testing.assert_array_equal(got, array)


def test_round_trip_in_shards(tmp_path):
    told = []
    written = write(tmp_path, progress=told.append)
    assert sorted(written) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert sum(told) == sum(a.nbytes for a in ARRAYS.values())
    same(ShardReader(tmp_path))
    same(ShardReader(tmp_path / "model.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(a.nbytes for a in ARRAYS.values())}
    assert list(index["weight_map"]) == list(ARRAYS)
    # another implementation reads them too
    theirs = {n: a for f in written if "00002" in f for n, a in load_file(tmp_path / f).items() if n != "half"}
    np.testing.assert_array_equal(theirs["tail"], ARRAYS["tail"])
    assert verify(tmp_path, "model") == written


def test_one_file_and_files_of_others(tmp_path):
    write_one(tmp_path, PLAN, blocks, prefix="part")
    assert {p.name for p in tmp_path.iterdir()} == {"part.safetensors", "part.sha256.json"}
    same(ShardReader(tmp_path / "part.safetensors"))
    save_file({k: v for k, v in ARRAYS.items() if k != "half"}, tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(ShardReader(tmp_path, prefix="theirs").read("wide"), ARRAYS["wide"])


@pytest.mark.parametrize("rows", [slice(2, 5), slice(4, 99), slice(3, 3), slice(0, 6, 2), slice(None)])
def test_rows_and_slices(tmp_path, rows):
    write(tmp_path)
    reader = ShardReader(tmp_path)
    np.testing.assert_array_equal(reader.read("wide", rows), ARRAYS["wide"][rows])
    np.testing.assert_array_equal(reader.read("half", rows), ARRAYS["half"][rows])
    index = (rows, slice(1, 3), slice(None))
    np.testing.assert_array_equal(reader.read("wide", index), ARRAYS["wide"][index])


def test_resumes_after_a_failure_and_trusts_nothing_else(tmp_path):
    def until(stop):
        def read(name):
            reads.append(name)
            if name == stop:
                raise OSError("no space left")
            return blocks(name)

        return read

    reads: list[str] = []
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path, until("tail"), source="a")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["model-00001-of-00002.safetensors", "model.sha256.json"]
    with pytest.raises(FileNotFoundError, match=r"index.json: missing"):
        ShardReader(tmp_path)  # a partial checkpoint is not taken for a whole one
    reads.clear()
    (tmp_path / ".model-00002-of-00002.safetensors.1.part").write_text("left by a kill")
    write(tmp_path, until(None), source="a")
    assert not list(tmp_path.glob(".*"))
    assert reads == ["half", "count", "one", "none", "tail"]
    same(ShardReader(tmp_path))
    # another source, or other bytes: everything is written again
    reads.clear()
    write(tmp_path, until(None), source="b")
    assert len(reads) == len(ARRAYS)
    path = tmp_path / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"00001-of-00002.safetensors: has sha256"):
        verify(tmp_path, "model")
    reads.clear()
    write(tmp_path, until(None), source="b")
    assert reads == ["wide"]
    same(ShardReader(tmp_path))


def test_blocks_that_do_not_fit_the_plan_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tensor 'wide': got 4 rows, planned \(6, 5, 4\)"):
        write(tmp_path, lambda name: [ARRAYS[name][:4]])
    with pytest.raises(ValueError, match=r"tensor 'wide': got rows float64"):
        write(tmp_path, lambda name: [ARRAYS[name].astype(np.float64)])
    with pytest.raises(ValueError, match=r"tensor 'x' has dtype complex64"):
        write(tmp_path / "new", plan={"x": jax.ShapeDtypeStruct((1,), np.complex64)})
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*.safetensors"))


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path, source="a")
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: shards.shutil._ntuple_diskusage(9, 9, 100))
    write(tmp_path, source="a")  # nothing left to write
    with pytest.raises(OSError, match=r"0.00 GB free"):
        write(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    same(ShardReader(tmp_path))


def shard(directory, number):
    return directory / f"model-0000{number}-of-00002.safetensors"


def cut(directory):
    shard(directory, 2).write_bytes(shard(directory, 2).read_bytes()[:-5])


def grow(directory):
    shard(directory, 2).write_bytes(shard(directory, 2).read_bytes() + b"12345678")


def lose(directory):
    shard(directory, 1).unlink()


def reindex(change):
    def apply(directory):
        path = directory / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return apply


def text(directory):
    shard(directory, 1).write_text("not a tensor at all, but text")


def overlap(directory):
    raw = shard(directory, 1).read_bytes()
    shard(directory, 1).write_bytes(raw.replace(b'"shape":[6,5,4]', b'"shape":[6,5,3]'))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, r"00002-of-00002.safetensors: .*tensor 'tail' ends at byte \d+, the file has \d+: truncated"),
        (grow, r"00002-of-00002.safetensors: .*its tensors end at byte"),
        (lose, r"00001-of-00002.safetensors: missing, but named by"),
        (text, r"00001-of-00002.safetensors: not a readable safetensors file"),
        (overlap, r"00001-of-00002.safetensors: .*tensor 'wide' of shape \(6, 5, 3\) has the bytes 0 to 480"),
        (reindex(lambda m: m.update(ghost=m["wide"])), r"index.json: names tensor 'ghost' in model-00001"),
        (reindex(lambda m: m.pop("tail")), r"00002-of-00002.safetensors: holds tensor 'tail', which model.safetensors"),
        (reindex(lambda m: m.update(wide="../x")), r"index.json: not an index of shards"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{"), r"index.json: not an index of shards"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "has both model.safetensors and"),
    ],
)
def test_damage_is_named(tmp_path, harm, message):
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ShardReader(tmp_path)
