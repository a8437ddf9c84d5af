"""``aqaa sweep``: bad flags and values end in one line, before anything is trained."""

from pathlib import Path

import pytest

from aqaa_jax.cli.main import main

CONFIG = Path(__file__).parents[2] / "configs" / "experiments" / "codebooks.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms=dual,triple"], "no arm or seed 'triple'; expected dual, linguistic, semantic; seeds 0 to 0"),
        (["--seeds=7"], "no arm or seed 7"),
        (["--seeds=one"], "--seeds is one; expected numbers"),
        (["--config.measure.questons=3"], "no such config field"),
        (["--config.recipe.pretrain.tokens=0.5"], "tokens"),
        (["--config.common=('corpus','dpo')"], "shared stage 'dpo' is not one of corpus, tokenize, pretrain"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    assert main(["sweep", f"--config={CONFIG}:toy", f"--run_dir={tmp_path / 'run'}", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and said.startswith("aqaa sweep: ") and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_help_and_a_missing_config(capsys):
    assert main(["sweep", "--help"]) == 0 and "results.json" in capsys.readouterr().out
    assert main(["sweep", "--run_dir=x"]) == 2 and "--config=FILE is required" in capsys.readouterr().err
