"""Every experiment's config builds, its arms differ from one another, and what is asked of it is checked."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from aqaa_jax.config import from_dict, to_dict
from aqaa_jax.experiments.config import Arm, Claim, SweepConfig
from aqaa_jax.experiments.sweep import _cells, decoder_stage

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "experiments").glob("*.py"))


def load(name: str, variant: str) -> SweepConfig:
    path = CONFIGS[0].with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(SweepConfig, module.get_config(variant).to_dict())


@pytest.mark.parametrize("variant", ["toy", "pocket"])
@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_arms_are_recipes_that_differ_in_one_thing(name, variant):
    sweep = load(name, variant)
    assert sweep.config == f"configs/experiments/{name}.py:{variant}" and sweep.recipe.start
    assert sweep.seeds >= (3 if variant == "pocket" else 1) and len(sweep.claims) >= 2
    recipes = {arm: sweep.recipe_of(arm, 0) for arm in sweep.arms}
    assert len({str(to_dict(recipe)) for recipe in recipes.values()}) == len(recipes)
    for arm, recipe in recipes.items():
        assert decoder_stage(recipe) in recipe.stages
        assert {stage for stage in (*sweep.common, *sweep.seeded)} <= set(recipe.stages), arm
    with pytest.raises(ValueError, match="is not known; expected :pocket or :toy"):
        load(name, "huge")


def test_a_seed_goes_into_what_is_run_for_it_and_not_into_what_all_share():
    sweep = load("merging", "toy")
    for recipe in (sweep.recipe_of("5_5_1", 2), sweep.base(2)):
        assert recipe.sft1.loop.seed == recipe.dpo.loop.seed == recipe.pairs.seed == 2
    sweep = load("preference", "toy")
    recipe = sweep.recipe_of("before", 2)
    assert (recipe.sft1.loop.seed, recipe.dpo.loop.seed, recipe.pairs.seed) == (0, 2, 0)
    assert sweep.seeds_of("before") == range(1)


def test_the_budget_of_the_patterns_is_equal_and_the_blocks_are_the_papers():
    sweep = load("patterns", "pocket")
    recipes = {arm: sweep.recipe_of(arm, 0) for arm in sweep.arms}
    assert len({(r.sft1.loop.steps, r.sft1.tokens) for r in recipes.values()}) == 1
    blocks = {
        arm: (r.system.weave.text, r.system.weave.linguistic + r.system.weave.semantic) for arm, r in recipes.items()
    }
    assert all(f"{a}_{b}" == arm for arm, (a, b) in blocks.items() if arm[0].isdigit()) and len(blocks) == 8
    assert {recipes[p].system.weave.pattern for p in ("audio_only", "text_cot")} == {"audio_only", "text_cot"}


def test_seeds_come_first_and_unknown_names_are_refused():
    sweep = replace(load("codebooks", "toy"), seeds=2)
    assert [str(cell) for cell in _cells(sweep, ("dual", "semantic"), ())] == [
        "dual, seed 0",
        "semantic, seed 0",
        "dual, seed 1",
        "semantic, seed 1",
    ]
    assert len(_cells(sweep, (), (1,))) == 3
    for arms, seeds, name in ((("triple",), (), "'triple'"), ((), (5,), "5")):
        with pytest.raises(
            ValueError, match=f"no arm or seed {name}; expected dual, linguistic, semantic; seeds 0 to 1"
        ):
            _cells(sweep, arms, seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"a": Arm({"corpus": {"seed": 1}})}, "claims": ()}, "changes 'corpus', a value of a stage that all"),
        ({"arms": {"a/b": Arm()}, "claims": ()}, "arm 'a/b'; expected a name"),
        ({"claims": (Claim("x", "y", "dual", ("nobody",)),)}, "claim 'x' is of arm nobody"),
        ({"seeded": ("dpo",)}, "shared stage 'dpo' is not one of corpus, tokenize, pretrain"),
    ],
)
def test_a_senseless_sweep_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(load("codebooks", "toy"), **change)
