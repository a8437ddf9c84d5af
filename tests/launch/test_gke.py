"""The launcher and Kubernetes: what is handed to xpk or kubectl, and how its end is read."""

import shlex
import subprocess

import pytest
import yaml
from pretend_cloud import COMMON

GKE = ("--backend=gke", "--project=p", "--zone=us-east5-a", "--cluster=c", "--run-dir=gs://b/run", *COMMON)
XPK = (*GKE, "--topology=v5p:4x4x4", "--storage=disk")
JOBSET = (*GKE, "--topology=v6e:4x4", "--tool=jobset", "--service-account=trainer", "--slices=2")
GONE = {"code": 1, "err": 'Error from server (NotFound): jobsets.jobset.x-k8s.io "run1" not found'}


def ends(cloud, *answers):
    cloud.rule("get jobset run1 .*Failed", {"out": "job failed"})
    cloud.rule("kubectl get jobset run1", *answers)


def test_xpk_gets_the_workload(cloud):
    ends(cloud, GONE, {"out": " 0"}, {"out": " 2"}, {"out": "Completed 2"})
    done = cloud.run(*XPK, "--slices=2", "--max-restarts=7", "--", "--config.name=it's")
    assert done.returncode == 0, done.stderr
    (create,) = cloud.calls("create", "--workload=run1")
    for word in ("--workload=run1", "--tpu-type=v5p-4x4x4", "--num-slices=2", "--max-restarts=7", "--storage=disk"):
        assert word in create
    command = shlex.split(next(w for w in create if w.startswith("--command=")).removeprefix("--command="))
    at = command.index("pod")
    assert command[at:] == ["pod", "--devices=128", "--", "--config=configs/pocket.py", "--config.name=it's"]
    (archive,) = (cloud.folder / "bucket" / "run" / "launch").glob("*.tar")
    assert f"/bucket/run/launch/{archive.name}" in command
    assert "restart 2 of at most 7" in done.stderr and "trained to the end" in done.stderr
    assert len(cloud.calls("kubectl", "logs", "job-index=0")) >= 1


def test_xpk_is_named_a_type_or_a_topology(cloud):
    ends(cloud, GONE, {"out": "Completed 0"})
    assert cloud.run(*GKE, "--storage=disk", "--accelerator=v5litepod-256").returncode == 0
    assert cloud.calls("--workload", "--tpu-type=v5litepod-256")


def test_the_manifest_of_a_jobset(cloud):
    ends(cloud, GONE, {"out": "Completed 0"})
    done = cloud.run(*JOBSET, "--provision=spot", "--max-failures=5", "--", "--note=a 'quoted' word")
    assert done.returncode == 0, done.stderr
    (apply,) = cloud.calls("kubectl", "apply")
    with open(apply[-1]) as file:
        manifest = yaml.safe_load(file)
    job = manifest["spec"]["replicatedJobs"][0]
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 50 and job["replicas"] == 2
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4 and spec["backoffLimit"] == 0
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [3]
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    container = pod["containers"][0]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "b"
    words = shlex.split(container["command"][2])
    assert words[-1] == "--note=a 'quoted' word" and "--devices=32" in words and "AQAA_MAX_FAILURES=5" in words


def test_a_workload_that_failed_ends_it(cloud):
    ends(cloud, GONE, {"out": " 1"}, {"out": "Failed 3"})
    done = cloud.run(*XPK)
    assert done.returncode == 4
    assert "workload run1 failed after 3 restarts: job failed" in done.stderr.splitlines()[-1]


def test_attaching_replacing_ending(cloud):
    ends(cloud, {"out": " 0"}, {"out": "Completed 0"}, {"out": "Failed 9"}, {"out": " 0"}, {"out": "Completed 0"})
    done = cloud.run(*XPK)
    assert done.returncode == 0 and "attaching" in done.stderr and not cloud.calls("--workload")
    assert cloud.run(*XPK).returncode == 0  # an old failed one of that name makes room
    assert len(cloud.calls("kubectl", "delete", "jobset")) == 1 and len(cloud.calls("--workload")) == 1
    assert cloud.run(*XPK, "--end").returncode == 0
    assert len(cloud.calls("kubectl", "delete", "jobset")) == 2


def test_quota_and_retries(cloud):
    ends(cloud, GONE)
    flaky = {"code": 1, "err": "[XPK] connection reset"}
    cloud.rule("xpk workload create", flaky, {"code": 1, "err": "[XPK] insufficient quota: google.com/tpu"})
    done = cloud.run(*XPK)
    assert done.returncode == 3 and len(cloud.calls("--workload")) == 2
    assert "the quota of project p in us-east5-a does not allow v5p:4x4x4" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [XPK, JOBSET], ids=["xpk", "jobset"])
def test_a_dry_run_calls_nothing(cloud, arguments):
    done = cloud.run(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not cloud.calls()
    plan = [shlex.split(line)[:2] for line in done.stdout.splitlines() if not line.startswith("#")]
    submit = ["xpk", "workload"] if arguments is XPK else ["kubectl", "apply"]
    assert submit in plan and ["kubectl", "logs"] in plan and ["gcloud", "container"] in plan
    if arguments is JOBSET:
        text = "\n".join(line[2:] for line in done.stdout.splitlines() if line.startswith("# "))
        assert yaml.safe_load(text)["kind"] == "JobSet"


def test_what_gke_needs(cloud):
    for arguments, message in [
        ((*GKE, "--topology=v5p:4x4x4"), "--storage is required for --backend=gke"),
        ((*GKE, "--topology=v5p:4x4x4", "--tool=jobset"), "--service-account is required"),
        ((*GKE, "--accelerator=v5p-8", "--tool=jobset", "--service-account=a"), "--topology is required"),
        ((*XPK, "--tool=helm"), "expected xpk or jobset"),
    ]:
        done = cloud.run(*arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr


GUARD = """
export AQAA_NAME=n AQAA_SHA=s AQAA_RUN_DIR=gs://b/run AQAA_MAX_FAILURES=2
export AQAA_HOME="$HOME/aqaa" AQAA_MOUNT="$HOME/bucket"
mkdir -p "$AQAA_HOME/venv/s/bin" && touch "$AQAA_HOME/venv/s/ready"
for name in python aqaa; do cp "$HOME/aqaa-$name" "$AQAA_HOME/venv/s/bin/$name"; done
exec bash "$1/launch/host.sh" pod --devices=8 -- --config=x
"""


def pod(launcher, home, code, worker="0"):
    """One life of a container whose training ends with ``code``."""
    (home / "aqaa-python").write_text("#!/bin/bash\n")
    (home / "aqaa-aqaa").write_text(f'#!/bin/bash\n[[ $1 == preflight ]] || {{ echo "$@"; exit {code}; }}\n')
    for name in ("python", "aqaa"):
        (home / f"aqaa-{name}").chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TPU_WORKER_ID": worker}
    command = ["bash", "-c", GUARD, "-", str(launcher)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_a_pod_restarts_until_nothing_new_is_saved(launcher, tmp_path):
    """Codes of Python become 42, which restarts; after two failures at one saved step it is 3, which is final."""
    checkpoints = tmp_path / "bucket" / "run" / "sft" / "checkpoints"
    assert pod(launcher, tmp_path, 1).returncode == 42
    (checkpoints / "100").mkdir(parents=True)
    assert pod(launcher, tmp_path, 1).returncode == 42
    assert pod(launcher, tmp_path, 143).returncode == 143  # told to stop: not its failure
    assert pod(launcher, tmp_path, 137).returncode == 137
    assert pod(launcher, tmp_path, 1, worker="1").returncode == 42  # only worker 0 counts
    assert pod(launcher, tmp_path, 1).returncode == 42
    last = pod(launcher, tmp_path, 0)
    assert last.returncode == 3 and "the last 2 attempts failed without a new saved step" in last.stdout
    (checkpoints / "200").mkdir()
    done = pod(launcher, tmp_path, 0)
    assert done.returncode == 0 and "train --config=x --run_dir=" in done.stdout
