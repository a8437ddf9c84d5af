"""Post-training: the rule that makes a pair, and the whole chain at smoke size, stage by stage and resumed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from aqaa_jax.checkpoint.files import read_file
from aqaa_jax.config import from_dict
from aqaa_jax.data.pairs import load_pairs
from aqaa_jax.evaluation.sphinx import normalize_text
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.recipe.pairs import Scored, chosen_and_rejected
from aqaa_jax.recipe.run import run_recipe
from aqaa_jax.tokens.vocab import EOT
from aqaa_jax.training.config import STAGES, RecipeConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def recipe(name: str, variant: str) -> RecipeConfig:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(RecipeConfig, module.get_config(variant).to_dict())


def answer(right, temperature=0.7, whole=True, aligned=True):
    return Scored(temperature, "text", "heard", right, whole, aligned, [5])


def test_the_best_right_answer_stands_before_the_best_wrong_one():
    right = [answer(True, 1.0, aligned=False), answer(True, 0.7), answer(True, 0.0, whole=False), answer(True, 1.3)]
    wrong = [answer(False, 0.7, whole=False), answer(False, 1.3)]
    assert chosen_and_rejected([*right, *wrong], own_answers=True) == (right[1], wrong[1])
    assert chosen_and_rejected(right, own_answers=False) is None
    assert chosen_and_rejected(wrong, own_answers=False) == (None, wrong[1])
    assert chosen_and_rejected(wrong, own_answers=True) is None


@pytest.mark.parametrize("variant", ["pocket", "scratch", "smoke", "full"])
def test_the_single_stages_are_parts_of_the_one_recipe(variant):
    whole = recipe("recipe", variant)
    parts = [recipe(name, variant) for name in ("sft1", "sft2", "dpo", "merge")]
    ran = {name for part in parts for name in part.only}
    assert whole.only == () and [name for name in STAGES if name in ran] == list(whole.stages)
    for part in parts:
        assert {**vars(part), "only": (), "config": whole.config} == vars(whole)
    assert (whole.merge.sft1, whole.merge.sft2, whole.merge.dpo) == (5.0, 5.0, 1.0)
    assert whole.preference.counted == ("text", "end")


def test_a_stage_out_of_order_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sft1/decoder.safetensors: missing; stage 'sft1' has to run first"):
        run_recipe(recipe("merge", "scratch"), tmp_path)


@pytest.mark.long
def test_the_whole_chain_at_smoke_size(tmp_path, capsys):
    run_recipe(recipe("sft1", "smoke"), tmp_path)
    for name in ("sft2", "dpo"):
        run_recipe(recipe(name, "smoke"), tmp_path)
    pairs, lines = load_pairs(tmp_path / "pairs" / "pairs.npz"), (tmp_path / "pairs" / "pairs.jsonl").read_text()
    said = [json.loads(line) for line in lines.splitlines()]
    assert len(pairs) == len(said) == json.loads((tmp_path / "pairs" / "about.json").read_text())["pairs"] > 0
    for pair, line in zip(pairs, said, strict=True):
        assert normalize_text(line["rejected"]["text"]) != normalize_text(line["expected"])
        assert pair.chosen[-1] == EOT
    before = [
        (tmp_path / "pairs" / "samples" / "00001.json").read_text(),
        (tmp_path / "pairs" / "pairs.npz").read_bytes(),
    ]
    for path in (*made, tmp_path / "dpo" / "done.json"):
        path.unlink()
    run_recipe(recipe("recipe", "smoke"), tmp_path)  # the same pairs again, their references still good, and the rest
    after = [
        (tmp_path / "pairs" / "samples" / "00001.json").read_text(),
        (tmp_path / "pairs" / "pairs.npz").read_bytes(),
    ]
    assert before == after
    one, two, three, mean = (read_file(tmp_path / s / "decoder.safetensors") for s in ("sft1", "sft2", "dpo", "merge"))
    for name, value in mean.items():
        expected = (5 * np.float64(one[name]) + 5 * np.float64(two[name]) + np.float64(three[name])) / 11
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    assert any((one[name] != three[name]).any() for name in one)
    for folder in ("model", "sft1/model", "sft2/model", "dpo/model"):
        assert Aqaa.load(tmp_path / folder).system.config == recipe("recipe", "smoke").system
    capsys.readouterr()
    run_recipe(recipe("recipe", "smoke"), tmp_path)
    assert capsys.readouterr().err.count("already done") == len(recipe("recipe", "smoke").stages)
