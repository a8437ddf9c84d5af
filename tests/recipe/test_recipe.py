"""The whole recipe at smoke size: from nothing to a folder that answers; finished stages are skipped."""

import importlib.util
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from aqaa_jax.checkpoint.folder import SPEAKER_MODEL, read_config, read_part
from aqaa_jax.config import WeaveConfig, from_dict, to_dict
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.parts import abstract
from aqaa_jax.recipe import run
from aqaa_jax.recipe.folders import package
from aqaa_jax.recipe.run import run_recipe
from aqaa_jax.training.config import RecipeConfig
from aqaa_jax.training.corpus import text_tokenizer
from aqaa_jax.training.language import codebook_rows
from aqaa_jax.training.start import FOLDER, started


def pocket(variant: str, **changes) -> RecipeConfig:
    path = Path(__file__).parents[2] / "configs" / "pocket.py"
    spec = importlib.util.spec_from_file_location("pocket", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(RecipeConfig, {**module.get_config(variant).to_dict(), **changes})


def smoke(**changes) -> RecipeConfig:
    return pocket("smoke", **changes)


@pytest.mark.long
def test_smoke_recipe_ends_in_a_model_that_answers(tmp_path, capsys):
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
    with pytest.raises(ValueError, match="stage 'flow' is not one of this recipe, which has hift, sft1"):
        run_recipe(smoke(stages=["hift", "sft1"]), tmp_path, only=["flow"])
    run_recipe(smoke(stages=()), tmp_path)
    (tmp_path / "corpus").mkdir()
    changed = smoke(stages=(), corpus={"seed": 5})
    with pytest.raises(ValueError, match="begun with other values of corpus"):
        run_recipe(changed, tmp_path)


def test_the_time_of_a_stage_counts_every_sitting(tmp_path, monkeypatch):
    sittings = iter((SystemExit(143), None))

    def stage(*_):
        time.sleep(0.11)
        if (error := next(sittings)) is not None:
            raise error

    monkeypatch.setitem(run.STEPS, "flow", stage)
    with pytest.raises(SystemExit):
        run_recipe(smoke(), tmp_path, only=["flow"])
    assert not (tmp_path / "flow" / "done.json").exists()
    run_recipe(smoke(), tmp_path, only=["flow"])
    spent = json.loads((tmp_path / "flow" / "done.json").read_text())
    assert spent["seconds"] >= 0.2 and set(spent) == {"seconds", "cpu_seconds"}


SHIPPED = Path(__file__).parents[2] / "aqaa_jax" / "assets" / "pocket"


def test_a_run_can_begin_from_a_model_folder(tmp_path):
    more = pocket("more", start=str(SHIPPED))
    run_recipe(more, tmp_path, only=[])
    for name, stage in (("linguistic", "linguistic"), ("semantic", "semantic"), ("flow", "flow")):
        assert (tmp_path / stage / f"{name}.safetensors").read_bytes() == (SHIPPED / f"{name}.safetensors").read_bytes()
        assert json.loads((tmp_path / stage / "done.json").read_text())["start"] == str(SHIPPED)
    for part, stage in (("decoder", "sft1"), ("hift", "hift")):
        first, shipped = started(more, tmp_path, stage, part), read_part(SHIPPED, part, abstract(more.system, part))
        jax.tree.map(np.testing.assert_array_equal, first, shipped)
        assert not (tmp_path / stage / "done.json").exists()
    assert started(more, tmp_path, "flow", "flow") is None
    assert text_tokenizer(more, tmp_path).encode_span("seven") == Aqaa.load().system.text.encode_span("seven")


def test_the_speaker_network_of_the_folder_goes_into_the_new_one(tmp_path):
    folder, run = tmp_path / "folder", tmp_path / "run"
    shutil.copytree(SHIPPED, folder)
    (folder / SPEAKER_MODEL).write_bytes(b"a network")
    more = pocket("more", start=str(folder))
    run_recipe(more, run, only=[])
    for part, stage in (("decoder", "sft1"), ("hift", "hift")):  # as if trained on
        shutil.copy(run / stage / FOLDER / f"{part}.safetensors", run / stage)
    package(more, run, print)
    assert (run / "model" / SPEAKER_MODEL).read_bytes() == b"a network"
    assert read_config(run / "model") == more.system


def test_a_folder_of_another_size_cannot_begin_a_run(tmp_path):
    with pytest.raises(ValueError, match="tokenizer, decoder, vocoder is not configured as the recipe's"):
        run_recipe(smoke(start=str(SHIPPED), stages=["sft1"]), tmp_path)
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        run_recipe(smoke(start=str(tmp_path / "nowhere"), stages=["sft1"]), tmp_path / "run")
    with pytest.raises(ValueError, match="stage 'semantic' cannot go on from a model folder"):
        run_recipe(pocket("pocket", start=str(SHIPPED), stages=["semantic"]), tmp_path / "other")
    assert not (tmp_path / "sft1").exists()


def test_a_new_decoder_may_stand_on_the_tokenizers_of_a_folder(tmp_path):
    system = pocket("pocket").system
    small = replace(
        system, decoder=replace(system.decoder, layers=1), weave=WeaveConfig(text=3, linguistic=2, semantic=3)
    )
    new = replace(pocket("pocket", start=str(SHIPPED), stages=["pretrain"]), system=small)
    run_recipe(new, tmp_path, only=[])
    assert (tmp_path / "flow" / "done.json").exists() and (tmp_path / "linguistic" / "done.json").exists()
    assert not (tmp_path / "pretrain").exists() and not (tmp_path / "corpus").exists()  # its text pieces are new too
    rows = codebook_rows(tmp_path, 8)
    assert rows.shape == (5120, 8) and np.isfinite(rows).all() and np.ptp(rows[:1024], axis=0).min() > 1


def test_answers_may_be_woven_anew_only_where_the_decoder_is_trained(tmp_path):
    woven = {"system": {**to_dict(pocket("pocket").system), "weave": {"joining": "marker_removal"}}}
    run_recipe(pocket("pocket", start=str(SHIPPED), stages=["sft1"], **woven), tmp_path, only=[])
    with pytest.raises(ValueError, match="its weave is not configured"):
        run_recipe(pocket("pocket", start=str(SHIPPED), stages=["hift"], **woven), tmp_path / "kept", only=[])
