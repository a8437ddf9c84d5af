"""Bad steps are skipped and written down; several in a row are gone back from and past, the same however it was cut."""

import json
import os
import signal
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import OPTIMIZER, Fit

from aqaa_jax.training.config import GuardConfig, LoopConfig
from aqaa_jax.training.guard import judged, new_guard
from aqaa_jax.training.loop import train
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.state import init_state
from aqaa_jax.training.step import make_train_step

LOOP = LoopConfig(steps=30, save_every=6, log_every=4, ema_decay=0.9, guard=GuardConfig(patience=3, rollbacks=2))


@dataclass(frozen=True)
class Bad(Fit):
    """Targets of some steps are infinite or far too large; ``adjust`` keeps count of the steps it was told of."""

    infinite: tuple = ()
    large: tuple = ()
    told: list = field(default_factory=list)

    def batch(self, step):
        batch = super().batch(step)
        factor = np.inf if step in self.infinite else 1e3 if step in self.large else 1.0
        return {**batch, "y": batch["y"] * factor}

    def adjust(self, state, step):
        self.told.append(step)
        return state


def rows(path, event=None):
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row.get("event") == event]


def run(path, stage, loop=LOOP):
    said = []
    return train(stage, path, loop, OPTIMIZER, log=said.append), said


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bad_step_is_skipped_and_written_down(tmp_path):
    model, _ = run(tmp_path, Bad(infinite=(7, 11)))
    assert [(row["step"], row["skipped"], row["loss"]) for row in rows(tmp_path, "skipped")] == [
        (8, "not finite", "inf"),
        (12, "not finite", "inf"),
    ]
    assert [row["skipped"] for row in rows(tmp_path)][:3] == [0.0, 0.25, 0.25]
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))  # of the good steps
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))


def test_several_in_a_row_go_back_and_past_them(tmp_path):
    stage = Bad(infinite=(14, 15, 16, 17))
    model, said = run(tmp_path, stage)
    (line,) = [text for text in said if "rollback" in text]
    assert "steps 15 to 17 were skipped: back to the weights of checkpoint 12, on with step 18" in line
    assert [row["step"] for row in rows(tmp_path, "skipped")] == [15, 16, 17, 18]
    assert [row["step"] for row in rows(tmp_path, "rollback")] == [17]
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 12, 16, 20, 24, 28, 30]
    # By hand: twelve steps, then those from 17 on; ``adjust`` of the steps between is not forgotten.
    assert {12, 13, 14, 15, 16} <= set(stage.told[stage.told.index(16) + 1 :])
    optimizer = make_optimizer(OPTIMIZER, LOOP.steps)
    key = jax.random.key(0)
    state = init_state(stage.init(jax.random.fold_in(key, 0)), optimizer, ema=True)
    step = make_train_step(stage.loss, stage.weights, optimizer, ema_decay=0.9)
    for number in (*range(12), *range(17, 30)):
        state = state._replace(step=jnp.asarray(number, jnp.int32))
        state, _ = step(state, stage.batch(number), jax.random.fold_in(key, 1))
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


LONG = pytest.mark.long


@pytest.mark.parametrize("stop_at", [pytest.param(13, marks=LONG), 15, pytest.param(17, marks=LONG)])
def test_an_interrupted_run_goes_back_to_the_same_place(tmp_path, stop_at):
    bad = (14, 15, 16, 24, 25, 26)  # stopped before, among and behind them
    whole, _ = run(tmp_path / "whole", Bad(infinite=bad))
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", Bad(infinite=bad, stop_at=stop_at))
    again, _ = run(tmp_path / "cut", Bad(infinite=bad))
    same(whole, again)
    for event in (None, "skipped", "rollback"):
        steps = [[(r["step"], r.get("told")) for r in rows(tmp_path / name, event)] for name in ("whole", "cut")]
        assert steps[0] == steps[1]


def test_without_a_checkpoint_it_begins_anew(tmp_path):
    _, said = run(tmp_path, Bad(infinite=(3, 4, 5)))
    assert any("back to the weights of the beginning, on with step 7" in text for text in said)


@LONG
def test_the_last_steps_may_be_bad(tmp_path):
    model, _ = run(tmp_path / "bad", Bad(infinite=(27, 28, 29)))
    shorter, _ = run(tmp_path / "good", Bad(), replace(LOOP, steps=24))
    assert sorted(p.name for p in (tmp_path / "bad" / "checkpoints").iterdir() if p.name.isdigit())[-1] == "30"
    assert jax.tree.structure(model) == jax.tree.structure(shorter)


def test_a_run_that_does_not_get_on_ends(tmp_path):
    with pytest.raises(FloatingPointError, match="3 steps in a row were skipped after 2 rollbacks with fewer than 6"):
        run(tmp_path, Bad(infinite=tuple(range(9, 30))))
    assert [row["step"] for row in rows(tmp_path, "rollback")] == [12, 15]


@LONG
def test_rollbacks_far_apart_do_not_add_up(tmp_path):
    loop = replace(LOOP, steps=60)
    _, said = run(tmp_path, Bad(infinite=(9, 10, 11, 22, 23, 24, 34, 35, 36, 46, 47, 48)), loop)
    assert sum("rollback 1 of 2" in text for text in said) == 4


def test_a_spike_is_skipped_and_a_quiet_run_is_the_run(tmp_path):
    guarded = replace(LOOP, guard=GuardConfig(spike=6.0, warmup=10, memory=20))
    plain, _ = run(tmp_path / "plain", Bad())
    same(plain, run(tmp_path / "guarded", Bad(), guarded)[0])
    model, _ = run(tmp_path / "spike", Bad(large=(20,)), guarded)
    (row,) = rows(tmp_path / "spike", "skipped")
    assert row["step"] == 21 and row["skipped"] == "spike of loss and grad_norm" and row["loss"] > row["loss_limit"]
    same(model, run(tmp_path / "infinite", Bad(infinite=(20,)), guarded)[0])


def test_the_level_follows_a_lasting_change_and_forgets_a_spike():
    config = GuardConfig(spike=5.0, warmup=10, memory=20, patience=0)
    step = jax.jit(lambda guard, loss: judged(guard, loss, 1.0 + 0.0 * loss, config))
    rng, guard, verdicts = np.random.default_rng(0), new_guard(), []
    losses = [*(4 + 0.1 * rng.normal(size=50)), 400.0, *(4 + 0.1 * rng.normal(size=20)), *np.full(60, 8.0)]
    for loss in losses:
        guard, good, _ = step(guard, jnp.float32(loss))
        verdicts.append(bool(good))
    assert all(verdicts[:50]) and not verdicts[50] and all(verdicts[51:71])
    assert not verdicts[71] and all(verdicts[-20:])


@LONG
def test_sigterm_at_the_step_that_trips(tmp_path):
    class Stops(Bad):
        def adjust(self, state, step):
            if step == 16 and 16 not in self.told:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().adjust(state, step)

    bad = (14, 15, 16)
    whole, _ = run(tmp_path / "whole", Bad(infinite=bad))
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", Stops(infinite=bad))
    same(whole, run(tmp_path / "cut", Bad(infinite=bad))[0])
