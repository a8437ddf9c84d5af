"""The engine: what is shared is made once and linked, what is done is not done again, results grow cell by cell."""

import json

import jax
import pytest

from aqaa_jax.atomic import write_json
from aqaa_jax.config import from_dict
from aqaa_jax.experiments import sweep as engine
from aqaa_jax.experiments.config import SweepConfig
from aqaa_jax.experiments.measures import Table, table_path
from aqaa_jax.recipe import run as recipes

STAGES = ["corpus", "tokenize", "pretrain", "sft1", "dpo"]


@pytest.fixture
def ran(monkeypatch):
    """Every stage that runs, as (folder, stage, seed); each leaves a file with that in its folder."""
    log = []

    def step(name):
        def work(recipe, run_dir, say):
            loop = getattr(getattr(recipe, name, None), "loop", None)
            log.append((str(run_dir).split("/sweep/")[1], name, loop and loop.seed))
            (run_dir / name / "checkpoints" / "5").mkdir(parents=True)
            write_json(run_dir / name / "made.json", {"stage": name})

        return work

    for name in STAGES:
        monkeypatch.setitem(recipes.STEPS, name, step(name))

    def measure(cell, say):
        for kind in cell.config.kinds:
            assert (cell.folder / cell.stage / "made.json").exists()
            if not table_path(cell.folder, kind).exists():
                log.append((cell.folder.parent.name, "measure", cell.stage))
                table = Table(["q"], {"factuality": [(float(cell.recipe.text_pieces), 1.0)]})
                write_json(table_path(cell.folder, kind), table._asdict())

    monkeypatch.setattr(engine, "measure", measure)
    before = jax.config.jax_compilation_cache_dir
    yield log
    jax.config.update("jax_compilation_cache_dir", before)


def sweep(**changes) -> SweepConfig:
    values = {
        "name": "s",
        "config": "c",
        "recipe": {"stages": STAGES},
        "common": ["corpus", "tokenize"],
        "seeded": ["pretrain"],
        "seeds": 2,
        "arms": {"a": {}, "b": {"change": {"text_pieces": 2}}, "short": {"stages": STAGES[:4], "seeds": 1}},
    }
    return from_dict(SweepConfig, {**values, **changes})


def test_what_is_shared_is_made_once_and_linked(tmp_path, ran):
    folder, said = tmp_path / "sweep", []
    results = engine.run_sweep(sweep(), folder, say=said.append)
    assert [line for line in ran if line[1] != "measure"] == [
        ("common", "corpus", None),
        ("common", "tokenize", None),
        ("seed-0", "pretrain", 0),
        ("a/seed-0", "sft1", 0),
        ("a/seed-0", "dpo", 0),
        ("b/seed-0", "sft1", 0),
        ("b/seed-0", "dpo", 0),
        ("short/seed-0", "sft1", 0),
        ("seed-1", "pretrain", 1),
        ("a/seed-1", "sft1", 1),
        ("a/seed-1", "dpo", 1),
        ("b/seed-1", "sft1", 1),
        ("b/seed-1", "dpo", 1),
    ]
    assert [line[2] for line in ran if line[1] == "measure"] == ["dpo", "dpo", "sft1", "dpo", "dpo"]
    for name, source in (("tokenize", "common"), ("pretrain", "seed-1")):
        link = folder / "b" / "seed-1" / name
        assert link.is_symlink() and link.resolve() == folder / source / name
    assert not list(folder.glob("**/checkpoints"))
    assert results == json.loads((folder / "results.json").read_text())
    assert results["cells"] == {"measured": 5, "of": 5} and results["arms"]["b"]["figures"]["factuality"]["value"] == 2
    assert "ETA 0.0 min" in said[-1]
    moved = folder.rename(tmp_path / "elsewhere")  # links are relative
    assert (moved / "a" / "seed-0" / "pretrain" / "done.json").exists()


def test_a_stopped_sweep_goes_on_and_a_finished_one_does_nothing(tmp_path, ran, monkeypatch):
    folder, measure = tmp_path / "sweep", engine.measure

    def stopped(cell, say):
        if cell.folder.parent.name == "b":
            raise SystemExit(143)
        measure(cell, say)

    monkeypatch.setattr(engine, "measure", stopped)
    with pytest.raises(SystemExit):
        engine.run_sweep(sweep(), folder, say=lambda text: None)
    assert json.loads((folder / "results.json").read_text())["cells"]["measured"] == 1
    monkeypatch.setattr(engine, "measure", measure)
    done = len(ran)
    assert engine.run_sweep(sweep(), folder, arms=["b"], seeds=[0], say=lambda text: None)["cells"]["measured"] == 2
    assert ran[done:] == [("b", "measure", "dpo")]
    engine.run_sweep(sweep(), folder, say=lambda text: None)
    assert len([line for line in ran if line[1] != "measure"]) == 13
    done = len(ran)
    engine.run_sweep(sweep(), folder, say=lambda text: None)
    assert len(ran) == done


def test_a_cell_begun_with_other_values_is_refused(tmp_path, ran):
    engine.run_sweep(sweep(), tmp_path / "sweep", arms=["b"], say=lambda text: None)
    other = sweep(arms={"b": {"change": {"dpo": {"tokens": 9}}}})
    with pytest.raises(ValueError, match="begun with other values of dpo"):
        engine.run_sweep(other, tmp_path / "sweep", say=lambda text: None)
