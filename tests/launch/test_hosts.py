"""The whole way with the real ``host.sh``: each worker is a home folder here, and what ssh would run is run."""

import os
import stat
import subprocess

import pytest
from pretend_cloud import TPU

PYTHON = """#!/bin/bash
# a Python that makes environments with a stand-in for aqaa in them
[[ $1 == -c && $2 == *RUNTIME* ]] && echo --megascale=1
[[ $1 == -c ]] && exit 0
[[ "$1 $2" == "-m venv" ]] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$(dirname "$0")/trainer" "$3/bin/aqaa"
[[ "$1 $2 $3" == "-m pip freeze" ]] && echo jax==0.10.2
exit 0
"""
TRAINER = """#!/bin/bash
# `aqaa`: saves a step again and again; a file plan/WORKER in the run directory says what goes wrong, once or always
command=$1
for word in "$@"; do [[ $word == --run[-_]dir=* ]] && run=${word#--run?dir=}; done
plan=$run/plan/$TPU_WORKER_ID
[[ $command == preflight ]] && { echo "preflight ok   all  $*"; [[ ! -f $run/plan/unfit-$TPU_WORKER_ID ]]; exit; }
echo "training $AQAA_DISTRIBUTED $NOTE $* $LIBTPU_INIT_ARGS"
trap 'echo "saved and stopped"; exit 143' TERM
for step in 1 2 3 4; do
  [[ $TPU_WORKER_ID == 0 ]] && { mkdir -p "$run/sft/checkpoints/$step"; echo "step $step"; }
  if [[ -f $plan ]]; then
    read -r at what <"$plan"
    if [[ $step == "$at" ]]; then
      [[ $what == *once ]] && rm "$plan"
      case $what in
        killed*) kill -KILL $$ ;;
        error*) echo "ValueError: bad step $step"; exit 1 ;;
        wrapper*) kill -KILL $PPID; sleep 60 & wait ;;
      esac
    fi
  fi
  sleep 0.2 & wait $!
done
"""


@pytest.fixture
def hosts(cloud):
    cloud.settings(workers=2, hosts=True)
    for name, text in (("python3.13", PYTHON), ("trainer", TRAINER), ("mountpoint", "#!/bin/bash\n[[ -L $2 ]]\n")):
        path = cloud.folder / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return cloud


def test_slices_get_what_their_runtime_needs(hosts):
    hosts.settings(workers=1, hosts=True)
    done = hosts.run(*TPU, "--slices=2", "--preflight=0", "--set-env=LIBTPU_INIT_ARGS=--mine=2")
    assert done.returncode == 0, done.stderr
    log = (hosts.folder / "hosts" / "run1-1-0" / "aqaa" / "runs" / "run1" / "log").read_text()
    assert log.splitlines()[0].endswith("--mine=2 --megascale=1")


def plan(cloud, worker, text):
    path = cloud.folder / "bucket" / "run" / "plan" / str(worker)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def log(cloud, worker):
    return (cloud.folder / "hosts" / f"run1-{worker}" / "aqaa" / "runs" / "run1" / "log").read_text()


def test_code_environment_training_logs(hosts):
    done = hosts.run(*TPU, "--set-env=NOTE=a b", "--", "--stages=x y")
    assert done.returncode == 0, done.stderr
    assert "preflight ok   all" in done.stderr
    for worker in (0, 1):
        assert "training auto a b train --config=configs/pocket.py --stages=x y" in log(hosts, worker)
    launch = hosts.folder / "bucket" / "run" / "launch"
    kept = sorted(path.name for path in (launch / "logs").iterdir())
    assert kept == [f"{os.uname().nodename}-{worker}.log" for worker in (0, 1)]
    about = (launch / f"host-{os.uname().nodename}-1.txt").read_text()
    assert "AQAA_NAME=run1" in about and "jax==0.10.2" in about
    assert sorted(p.name for p in (hosts.folder / "logs" / "run1" / "workers").iterdir()) == kept


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("2 killed once", "exit 137 @"),
        pytest.param("2 error once", "ValueError: bad step 2", marks=pytest.mark.long),
        pytest.param("2 wrapper once", "run1/1: dead", marks=pytest.mark.long),
    ],
)
def test_a_worker_dies_and_training_starts_again(hosts, what, said):
    plan(hosts, 1, what)
    done = hosts.run(*TPU)
    assert done.returncode == 0, done.stderr
    assert "dead worker run1/1" in done.stderr and said in done.stderr
    assert log(hosts, 1).count("training auto") == 2
    assert log(hosts, 0).count("training auto") == 2  # it was stopped, or had ended


@pytest.mark.long
def test_a_poisoned_step_ends_it(hosts):
    plan(hosts, 0, "3 error always")
    done = hosts.run(*TPU, "--max-failures=2")
    assert done.returncode == 4, done.stderr
    assert "dead worker run1/0: exit 1 @" in done.stderr and "bad step 3; stopping after 2 failures" in done.stderr
    assert log(hosts, 0).count("training auto") == 2  # the first of them saved three steps


def test_an_unfit_host_trains_nothing(hosts):
    plan(hosts, "unfit-1", "")
    done = hosts.run(*TPU, "--max-failures=1")
    assert done.returncode == 4 and "preflight failed on 1 of 2 workers: run1/1 (failed 1" in done.stderr


def test_attaching_needs_the_same_arguments(hosts):
    """A run that goes on under other arguments is stopped, told to save, and started anew."""
    assert hosts.run(*TPU, "--keep", "--", "--a=1").returncode == 0
    known = "AQAA_NAME=run1 AQAA_SHA=$(basename $PWD) AQAA_RUN_DIR=gs://b/run"
    host = ["bash", "-c", f'cd "$HOME"/aqaa/code/*/; env {known} bash launch/host.sh "$@"', "-"]

    def phase(*words):
        env = {
            "PATH": f"{hosts.folder}/bin:/usr/bin:/bin",
            "HOME": str(hosts.folder / "hosts" / "run1-0"),
            "TPU_WORKER_ID": "0",
        }
        return subprocess.run([*host, *words], env=env, capture_output=True, text=True).stdout.strip()

    assert phase("start", "--a=1") == ":aqaa: start 0 ok"
    assert phase("status", "--a=1").startswith(":aqaa: status 0 running ")
    assert phase("status", "--a=2") == ":aqaa: status 0 other"
    assert phase("stop") == ":aqaa: stop 0 ok"
    assert phase("status", "--a=1") == ":aqaa: status 0 none"
    assert log(hosts, 0).splitlines()[-1] == "saved and stopped"
