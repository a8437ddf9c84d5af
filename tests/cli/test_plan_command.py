"""``aqaa plan`` end to end on a decoder of two small layers; its one-line errors."""

import json

import pytest

from aqaa_jax.cli.main import main

SIZES = {"embed": 256, "mlp": 512, "heads": 2, "kv_heads": 1, "head_dim": 128, "layers": 2, "vocab": 512}
TINY = ("--config=configs/aqaa_130b.py", *(f"--config.decoder.{name}={size}" for name, size in SIZES.items()))
KEYS = {"peak_hbm_gib", "predicted_mfu", "bound", "collectives", "hlo_matmul_flops", "flags", "versions", "assumed"}


@pytest.fixture(autouse=True)
def at_the_root(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.long  # half a minute of compiling
def test_a_plan_as_table_and_json(libtpu, tmp_path, capsys):
    path = tmp_path / "plan.json"
    arguments = [
        "--topology=v5p:2x2x1",
        "--seq=256",
        "--tokens=1e9",
        f"--json={path}",
        f"--save={tmp_path / 'step.aot'}",
    ]
    assert main(["plan", *TINY, *arguments]) == 0
    plan = json.loads(path.read_text())
    assert plan.keys() >= KEYS and plan["chips"] == 4 and plan["tokens_per_step"] == 4 * 256
    attention, weights = 4 * 256 * 2 * 128, 2 * 256 * (2 + 1) * 128 + 3 * 256 * 512
    model = 4 * 256 * (6 * (2 * weights + 256 * 512 + 5 * 256) + 3 * 2 * attention / 2)
    assert plan["model_flops"] == model and 1 <= plan["work_over_model"] < 1.4
    assert 0 < plan["peak_hbm_gib"] < 1 and 0 < plan["predicted_mfu"] < 1 and not plan["notes"]
    assert plan["days"] == pytest.approx(1e9 / plan["tokens_per_second"] / 86400)
    assert saved.stat().st_size > 1e5 and len(plan["executable"]["key"]) == 16
    assert "MFU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE is required"),
        (["--config=configs/aqaa_130b.py"], "--topology=NAME is required"),
        ([*TINY, "--topology=v5p"], "topology is 'v5p'; expected GENERATION:SIZES"),
        ([*TINY, "--topology=v9:2x2"], "unknown TPU generation 'v9'"),
        ([*TINY, "--topology=v5p:2x2x1", "--stage=hift"], "--stage is 'hift'; expected one of pretrain, sft1"),
        ([*TINY, "--topology=v5p:2x2x1", "--mesh=rows=4"], "mesh is 'rows=4'"),
        ([*TINY, "--topology=v5p:2x2x1", "--train=loop.stepz=1"], "unknown config key 'train.loop.stepz'"),
        ([*TINY, "--topology=v5p:2x2x1", "--xla=nonsense"], "XLA option 'nonsense'"),
    ],
)
def test_errors_in_one_line(libtpu, arguments, message, capsys):
    assert main(["plan", "--json=", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
