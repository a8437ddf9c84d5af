"""The whole recipe at smoke size: from nothing to a folder that answers; finished stages are skipped."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from aqaa_jax.config import from_dict
from aqaa_jax.training.config import RecipeConfig
from aqaa_jax.training.recipe import run_recipe


def smoke(**changes) -> RecipeConfig:
    path = Path(__file__).parents[2] / "configs" / "pocket.py"
    spec = importlib.util.spec_from_file_location("pocket", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(RecipeConfig, {**module.get_config("smoke").to_dict(), **changes})


@pytest.mark.long
def test_smoke_recipe_ends_in_a_model_that_answers(tmp_path, capsys):
    from aqaa_jax.inference.answer import Aqaa

    run_recipe(smoke(), tmp_path)
    model = Aqaa.load(tmp_path / "model")
    wav = np.sin(np.arange(16000) / 20).astype(np.float32)
    answer = model.ask(wav, sample_rate=16000)
    assert isinstance(answer.text, str) and answer.wav.dtype == np.float32
    capsys.readouterr()
    run_recipe(smoke(), tmp_path)
    assert capsys.readouterr().err.count("already done") == 9


def test_unknown_stage_and_changed_recipe_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'nonsense'"):
        run_recipe(smoke(), tmp_path, only=["nonsense"])
    run_recipe(smoke(stages=()), tmp_path)
    (tmp_path / "corpus").mkdir()
    changed = smoke(stages=(), corpus={"seed": 5})
    with pytest.raises(ValueError, match="begun with other values of corpus"):
        run_recipe(changed, tmp_path)
