"""Bad flags to ``aqaa train``: one line, exit code 2, nothing written."""

from pathlib import Path

import pytest

from aqaa_jax.cli.main import main

CONFIG = f"--config={Path(__file__).parents[2] / 'configs' / 'pocket.py'}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=nowhere.py"], "nowhere.py"),
        ([CONFIG + ":huge"], "not known"),
        ([CONFIG, "--config.sft1.nope=3"], "no such config field: 'nope'"),
        ([CONFIG, "--stages=sing"], "unknown stage 'sing'"),
        (["--run_dir=x"], "--config=FILE is required"),
    ],
)
def test_bad_flags(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("aqaa train: ") and message in lines[0]
    assert not list(tmp_path.iterdir())


def test_the_kinds_that_carry_the_preference_loss_can_be_given(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("aqaa_jax.recipe.run.run_recipe", lambda recipe, run_dir, **_: seen.append((recipe, run_dir)))
    config = f"--config={Path(CONFIG.removeprefix('--config=')).with_name('dpo.py')}:smoke"
    flags = ["--config.preference.counted=('text','audio','markers','end')", "--config.preference.kind=ipo"]
    assert main(["train", config, *flags]) == 0
    ((recipe, run_dir),) = seen
    assert recipe.preference.counted == ("text", "audio", "markers", "end") and recipe.preference.kind == "ipo"
    assert recipe.only == ("pairs", "dpo") and run_dir == "runs/recipe-smoke"
