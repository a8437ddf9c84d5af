"""An imported decoder read by two processes onto one mesh: each reads and holds its own slices."""

import json

import numpy as np
from published_files import step1_config, write_step1

from aqaa_jax.config import DecoderConfig, SystemConfig, VocabConfig
from aqaa_jax.convert import step1
from aqaa_jax.convert.importer import Options, import_folder

CONFIG = DecoderConfig(
    vocab=32, embed=16, mlp=24, heads=4, kv_heads=2, head_dim=4, layers=3, dtype="float32", param_dtype="float32"
)
PROCESS = """
import numpy as np
from aqaa_jax.checkpoint import folder
from aqaa_jax.checkpoint.shards import ShardReader
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, MeshConfig, SystemConfig, from_dict
from aqaa_jax.parts import abstract
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import shardings
from aqaa_jax.sharding.rules import strategy
folder_, values = arguments
part = abstract(SystemConfig(decoder=from_dict(DecoderConfig, json.loads(values))), "decoder")
mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
read, whole = {}, ShardReader.read
def recording(self, name, rows=None):
    array = whole(self, name, rows)
    read[name] = read.get(name, 0) + array.size
    return array
ShardReader.read = recording
model = folder.read_part(folder_, "decoder", part, shardings=shardings(part, mesh, strategy("fsdp_tensor")))
weights = named_weights(model)
total = jax.jit(lambda w: sum(jax.numpy.sum(x) for x in w.values()))(weights)
pieces = {f"{n} {[list(s.indices(d)[:2]) for s, d in zip(p.index, w.shape)]}": np.asarray(p.data)
          for n, w in weights.items() for p in w.addressable_shards}
np.savez(f"{folder_}/../{rank}.npz", **pieces)
print(json.dumps({"devices": len(jax.devices()), "local": len(jax.local_devices()), "read": read, "sum": float(total)}))
"""


def test_two_processes_share_a_mesh(tmp_path, two_processes):
    rng = np.random.default_rng(0)
    state = {n: rng.standard_normal(s).astype(np.float32) for n, s in step1.published_shapes(CONFIG).items()}
    write_step1(tmp_path / "in", state, step1_config(CONFIG))
    base = SystemConfig(decoder=CONFIG, vocab=VocabConfig(size=32, audio_start=24, linguistic=4, semantic=4))
    import_folder(tmp_path / "in", tmp_path / "out", base, Options(shard_bytes=3000), say=print)
    weights = step1.from_upstream(state, CONFIG)
    told = two_processes(PROCESS, tmp_path / "out", json.dumps(vars(CONFIG)))
    assert all(t["devices"] == 8 and t["local"] == 4 for t in told)
    assert all(abs(t["sum"] - sum(float(w.sum()) for w in weights.values())) < 1e-2 for t in told)
    for t in told:  # half of the matrix rows each
        assert t["read"]["blocks.1.mlp.gate"] == 16 * 24 // 2 and t["read"]["head"] == 16 * 32 // 2
    covered = {name: np.zeros(w.shape, int) for name, w in weights.items()}
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as pieces:
            for key in pieces.files:
                name, index = key.split(" ", 1)
                place = tuple(slice(*bounds) for bounds in json.loads(index))
                np.testing.assert_array_equal(pieces[key], weights[name][place], err_msg=key)
                covered[name][place] += 1
    assert all(c.min() >= 1 for c in covered.values())
    assert covered["head"].max() == 1
