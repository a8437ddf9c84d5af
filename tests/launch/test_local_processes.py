"""`launch/local.sh`: what it gives its processes, and how they end together."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "local.sh"


def start(tmp_path, text, *options):
    command = ["bash", str(SCRIPT), *options, f"--logs={tmp_path}", "bash", "-c", text]
    env = {**os.environ, "AQAA_GRACE_SECONDS": "20"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)


def run(tmp_path, text, *options):
    job = start(tmp_path, text, *options)
    out, err = job.communicate(timeout=60)
    return job.returncode, out, err


def test_each_process_knows_its_place(tmp_path):
    code, out, _ = run(tmp_path, 'echo "$AQAA_DISTRIBUTED $JAX_PLATFORMS $XLA_FLAGS"', "--processes=3", "--devices=2")
    logs = [(tmp_path / f"process-{i}.log").read_text() for i in range(3)]
    assert code == 0 and out == logs[0]
    assert len({text.split()[0].split("@")[1] for text in logs}) == 1  # one coordinator
    for i, text in enumerate(logs):
        assert text.startswith(f"{i}/3@127.0.0.1:") and " cpu " in text
        assert text.split()[-1] == "--xla_force_host_platform_device_count=2"


@pytest.mark.parametrize("code", [1, 9])
def test_when_one_dies_the_others_are_ended(tmp_path, code):
    """They would wait for it for ever; those that do not listen are killed."""
    text = f"[[ $AQAA_DISTRIBUTED == 1/* ]] && exit {code}; trap '' TERM; while :; do sleep 0.1; done"
    began = time.monotonic()
    found, _, err = run(tmp_path, text, "--processes=3")
    assert found == code and time.monotonic() - began < 15  # not the time that one has to save
    assert f"process 1 ended with code {code}; ending the others. Its log: {tmp_path}/process-1.log" in err


def test_one_that_was_stopped_lets_the_others_save(tmp_path):
    text = "[[ $AQAA_DISTRIBUTED == 1/* ]] && { until [[ -e ready ]]; do sleep 0.1; done; exit 143; }; "
    text += "trap 'sleep 0.5; echo saved; exit 143' TERM; touch ready; sleep 60 & wait"
    code, out, _ = run(tmp_path, text)
    assert code == 143 and out == "saved\n"


def test_a_signal_goes_to_all(tmp_path):
    job = start(tmp_path, "trap 'echo saved; exit 143' TERM; echo ready; sleep 60 & wait", "--processes=2")
    logs = [tmp_path / f"process-{i}.log" for i in range(2)]
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 143 and all("saved" in log.read_text() for log in logs)


def test_bad_usage(tmp_path):
    assert run(tmp_path, "true", "--processes=0")[0] == 2
    code, _, err = run(tmp_path, "true", "--threads=2")
    assert code == 2 and "there is no option --threads=2" in err
