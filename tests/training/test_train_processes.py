"""Two processes train on one mesh, agree when to stop, and go on: the run of one device."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_train_sharded import run

PROCESS = """
import signal, time
from pathlib import Path
import aqaa_jax, numpy as np
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
from aqaa_jax.sharding.partition import place_rows
from aqaa_jax.sharding.rows import share_of_rows
from aqaa_jax.sharding.rules import strategy
from aqaa_jax.training.distributed import whole as whole_model
from test_train_sharded import Next, run

(folder,) = arguments

class Stopped(Next):
    def batch(self, step):
        if rank == "1" and step == 0:
            signal.raise_signal(signal.SIGTERM)
        time.sleep(1)  # the other process has to hear of it
        return super().batch(step)

mesh, table = make_mesh(parse_mesh("fsdp=4,tensor=2")), strategy("fsdp_tensor")
whole = np.arange(16.0).reshape(8, 2)
a, b = place_rows(whole, mesh, table), place_rows(whole[4 * int(rank):][:4], mesh, table, local=True)
same = bool(jax.jit(lambda a, b: (a == b).all())(a, b))
try:
    run(Path(folder), "fsdp=4,tensor=2", "fsdp_tensor", Stopped())
    code = 0
except SystemExit as stopped:
    code = stopped.code
steps = len((Path(folder) / "metrics.jsonl").read_text().splitlines())
model, _ = run(Path(folder), "fsdp=4,tensor=2", "fsdp_tensor")
gathered = whole_model(model)
mine = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(gathered)] if rank == "0" else gathered is not None
told = {"code": code, "steps": steps, "devices": len(jax.devices()), "same": same, "model": mine}
print(json.dumps(told | {"share": share_of_rows(8, mesh, table)}))
"""


@pytest.mark.long
def test_two_processes_train_as_one_device(tmp_path, two_processes):
    told = two_processes(PROCESS, tmp_path / "two", path=(Path(__file__).parent,))
    assert [t["code"] for t in told] == [143, 143] and all(t["devices"] == 8 and t["same"] for t in told)
    assert 1 <= told[0]["steps"] < 4
    losses = [json.loads(line)["loss"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    model, expected = run(tmp_path / "one")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for gathered, leaf in zip(told[0]["model"], jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(gathered, leaf, atol=2e-5, rtol=1e-4)
    assert [t["share"] for t in told] == [[0, 2], [1, 2]]
