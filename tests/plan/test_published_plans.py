"""The published plans (benchmarks/plans.py): their arguments describe jobs that suit their topologies."""

import importlib.util
import json

import pytest

from aqaa_jax.cli import config_file
from aqaa_jax.cli import plan as command
from aqaa_jax.plan.compile import batch_parts, state_gib
from aqaa_jax.plan.topology import topology


def published(root):
    spec = importlib.util.spec_from_file_location("plans", root / "benchmarks" / "plans.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plans(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    return published(request.config.rootpath)


def test_every_plan_describes_a_job(libtpu, plans):
    for name, arguments in (plans.TRAINING | plans.DECODING).items():
        values, args = config_file.read("aqaa plan", arguments.split(), command._define)
        target = topology(args.topology, args.slices)
        job = command._job(values, args, target.devices)
        shape = (6144, 48) if "experts" in name else (12288, 88)
        assert (job.decoder.embed, job.decoder.layers) == shape, name
        if name in plans.TRAINING:
            parts = batch_parts(job.sharding, target.devices)
            assert job.config.batch % (parts * job.config.loop.microbatches) == 0, name


@pytest.mark.long  # traces the whole model
def test_the_state_of_a_pod_is_what_adam_takes(libtpu, plans):
    values, args = config_file.read("aqaa plan", plans.TRAINING["v5p_4x16x16_4k"].split(), command._define)
    target = topology(args.topology)
    gib = state_gib(command._job(values, args, target.devices), target)
    assert gib == pytest.approx(12 * 131.95e9 / 256 / 2**30, rel=0.01)


def test_the_page_shows_what_is_made_and_what_is_not(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "OUT", tmp_path)
    empty = plans.page()
    assert empty.count("not made") == len(plans.TRAINING) + len(plans.DECODING)
    assert all(name in empty for name in plans.TRAINING)
    (tmp_path / "v5p_4x4x4_4k.json").write_text('{"failed": 3, "arguments": ""}')
    assert "| v5p_4x4x4_4k | | does not fit or compile |" in plans.page()


def test_the_page_names_the_largest_synchronous_gather(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "OUT", tmp_path)
    figures = dict.fromkeys(("emit", "3D", "1D"), 0.5)
    made = {
        "chips": 64, "peak_hbm_gib": 80.0, "hbm_limit_gib": 95.74, "work_over_model": 1.2, "matmul_efficiency": 0.88,
        "predicted_step_seconds": 24.0, "ideal_seconds": 14.0, "sync_gather_in_layer_mib": 732.0, "bound": "compute",
        "predicted_mfu_by_axes": figures, "exposed_ici_seconds_by_axes": figures, "notes": [], "compile_seconds": 70.0,
        "cpu_seconds": 80.0, "peak_rss_gb": 1.7,
    }  # fmt: skip
    (tmp_path / "v5p_4x4x4_4k.json").write_text(json.dumps(made))
    head, *rows = [
        line for line in plans.page().splitlines() if line.startswith("| plan | chips | memory") or "732" in line
    ]
    assert len(rows) == 1 and rows[0].split("|")[head.split("|").index(" sync gather, MiB ")] == " 732 "


def test_a_plan_is_made_again_when_its_program_or_its_reader_changes(libtpu, plans, tmp_path, monkeypatch):
    few = "--config=configs/aqaa_130b.py --topology=v5p:2x2x1 --seq=256 " + " ".join(
        f"--config.decoder.{name}={size}"
        for name, size in {"embed": 256, "mlp": 512, "heads": 2, "kv_heads": 1, "layers": 2, "vocab": 512}.items()
    )
    of, path = plans.fingerprint(few), tmp_path / "plan.json"
    path.write_text(json.dumps({"fingerprint": of}))
    assert plans._made(path, plans.fingerprint(few)) and not plans._made(tmp_path / "none.json", of)
    assert len({of, plans.fingerprint(f"{few} --seq=512"), plans.fingerprint(f"{few} --decode")}) == 3
    assert plans.fingerprint(f"{few} --xla=none") != of
    assert plans._without_prose('"""A."""\ndef f():\n    """B."""\n    return 1  # c') == plans._without_prose(
        "def f():\n    return 1"
    )
    monkeypatch.setattr(plans, "ESTIMATOR", plans.ESTIMATOR[:-1])
    assert plans.fingerprint(few) != of


@pytest.mark.long  # minutes of compiling
def test_a_published_plan_of_two_layers(libtpu, plans, tmp_path):
    path = tmp_path / "plan.json"
    few = ["--config.system.decoder.layers=2", f"--json={path}"]
    assert command.run([*plans.TRAINING["v5p_4x16x16_4k"].split(), *few]) == 0
    plan = json.loads(path.read_text())
    assert plan["chips"] == 1024 and plan["bound"] == "compute" and not plan["notes"]
    assert 1 <= plan["work_over_model"] < 1.03 and 0.8 < plan["matmul_efficiency"] < 0.95
    assert plan["sync_gather_in_layer_mib"] <= 64 and plan["peak_hbm_gib"] < plan["hbm_limit_gib"]
    by = plan["predicted_mfu_by_axes"]
    assert by["1D"] <= by["emit"] <= by["3D"] < 0.95
