"""The launcher against a cloud of stand-ins: what it asks for, and what it makes of the answers."""

import re
import shlex

import pytest
from pretend_cloud import TPU

GONE = {"code": 1, "err": "ERROR: (gcloud) NOT_FOUND: Resource was not found"}


def phases(cloud):
    """The phases that the hosts were asked for, in order, without looks at how they are."""
    asked = [call for call in cloud.calls("--worker=all") if "host.sh status" not in " ".join(call)]
    return [" ".join(call).rsplit("host.sh ", 1)[1].split()[0] for call in asked]


def test_a_run_goes_through_and_releases_the_slice(cloud):
    done = cloud.run(*TPU, "--spot=1")
    assert done.returncode == 2 and "no option --spot" in done.stderr
    done = cloud.run(*TPU, "--provision=spot", "--", "--config.sft1.loop.steps=5", "--stages=a b")
    assert done.returncode == 0, done.stderr
    assert phases(cloud) == ["setup", "stop", "preflight", "start"]
    (create,) = cloud.calls("create")
    assert create[:4] == ["gcloud", "alpha", "compute", "tpus"] and "--node-id=run1" in create and "--spot" in create
    assert "--type=v5p" in create and "--topology=2x2x2" in create
    assert len(cloud.calls("queued-resources", "delete", "--force")) == 1
    (start,) = [c for c in cloud.calls("--worker=all") if "host.sh start" in c[-1]]
    words = shlex.split(start[-1])
    assert words[-3:] == ["--config=configs/pocket.py", "--config.sft1.loop.steps=5", "--stages=a b"]
    (snapshot,) = (cloud.folder / "bucket" / "run" / "launch").glob("*.txt")
    assert "provision: spot" in snapshot.read_text() and "sha: " in snapshot.read_text()
    assert "log of worker 0" in (cloud.folder / "logs" / "run1" / "worker-0.log").read_text()


def test_a_preempted_slice_is_made_again(cloud):
    """Active, taken away while training, gone, made again, active."""
    states = [{"out": s} for s in ("ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED")]
    cloud.rule("queued-resources describe", GONE, *states, GONE, {"out": "PROVISIONING"}, {"out": "ACTIVE"})
    cloud.status(["none", "none"], ["running 1", "running 1"], ["none", "none"], ["exit 0 @9: ", "exit 0 @9: "])
    done = cloud.run(*TPU, "--max-failures=1")  # a preemption is no failure
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources", "create")) == 2 and len(cloud.calls("queued-resources", "delete")) == 2
    assert phases(cloud).count("start") == 2
    assert "the slice was taken away (SUSPENDED); going on from the newest saved step" in done.stderr


@pytest.mark.parametrize("when", ["create", "later"])
def test_a_quota_refusal_ends_it_with_a_message(cloud, when):
    error = "Quota limit 'TPUV5pPerProjectPerZone' has been exceeded. Limit: 64 in zone z."
    if when == "create":
        cloud.rule("queued-resources create", {"code": 1, "err": f"ERROR: RESOURCE_EXHAUSTED: {error}"})
    else:
        cloud.rule(r"describe run1 .*failedData", {"out": error})
        cloud.rule("queued-resources describe", GONE, {"out": "WAITING_FOR_RESOURCES"}, {"out": "FAILED"})
    done = cloud.run(*TPU)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert "the quota of project p in z does not allow v5p:2x2x2 x 1 (on-demand)" in last and "Limit: 64" in last
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_a_flaky_call_is_tried_again_and_a_refusal_is_not(cloud):
    flaky = {"code": 1, "err": "ERROR: UNAVAILABLE: The service is currently unavailable."}
    cloud.rule("queued-resources create", flaky, flaky, {"code": 1, "err": "ERROR: ALREADY_EXISTS: run1"})
    cloud.rule("queued-resources describe", GONE, {"out": "ACTIVE"})
    done = cloud.run(*TPU)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources", "create")) == 3 and "try 2 of 6 failed" in done.stderr


def test_what_will_not_change_is_not_tried_again(cloud):
    cloud.rule("queued-resources describe", {"code": 1, "err": "ERROR: PERMISSION_DENIED: tpu.queuedResources.get"})
    done = cloud.run(*TPU)
    assert done.returncode == 3 and "refused" in done.stderr and "PERMISSION_DENIED" in done.stderr
    assert len(cloud.calls("queued-resources", "describe")) == 1


def test_tries_end(cloud):
    cloud.rule("queued-resources describe", {"code": 1, "err": "ERROR: INTERNAL"})
    done = cloud.run(*TPU, "--retries=3")
    assert done.returncode == 3 and "gave up after 3 tries" in done.stderr
    assert len(cloud.calls("queued-resources", "describe")) == 3


def test_a_dead_worker_is_named_and_the_run_goes_on(cloud):
    """The first to die is the cause: the other ends a second later because it is gone."""
    cloud.status(
        ["none", "none"],
        ["running 1", "running 1"],
        ["exit 1 @105: heartbeat lost", "exit 137 @104: step 7"],
        ["none", "none"],
        ["exit 0 @200: ", "exit 0 @200: "],
    )
    done = cloud.run(*TPU)
    assert done.returncode == 0, done.stderr
    assert "dead worker run1/1: exit 137 @104: step 7; going on" in done.stderr
    assert phases(cloud) == [*["setup", "stop", "preflight", "start", "stop"], *["setup", "stop", "preflight", "start"]]
    assert len(cloud.calls("queued-resources", "create")) == 1  # the slice is fine


def test_a_worker_that_answers_no_more_is_dead(cloud):
    cloud.status(["none", "none"], *[["running 1"]] * 3, ["none", "none"], ["exit 0 @9: "] * 2)
    done = cloud.run(*TPU)
    assert done.returncode == 0, done.stderr
    assert "dead worker: 1 of 2 answer" in done.stderr and "failures without progress: 1 of 3" in done.stderr


def test_a_node_that_is_gone_is_a_preemption(cloud):
    cloud.status(["none", "none"], *[["running 1"]] * 3, ["none", "none"], ["exit 0 @9: "] * 2)
    cloud.rule(r"tpu-vm describe run1 .*value\(state\)", {"out": "PREEMPTED"})
    done = cloud.run(*TPU, "--max-failures=1")
    assert done.returncode == 0, done.stderr
    assert "node run1 is PREEMPTED" in done.stderr and len(cloud.calls("queued-resources", "create")) == 2


def test_a_hung_run_is_ended(cloud):
    cloud.status(["none", "none"], ["running 4000", "running 9999"], ["none", "none"], ["exit 0 @9: "] * 2)
    done = cloud.run(*TPU, "--hang-minutes=60")
    assert "worker run1/0 has logged nothing for more than 60 minutes" in done.stderr and done.returncode == 0


def test_a_step_that_always_fails_ends_the_run(cloud):
    """Failures count from the last new saved step: the first attempt saves one, the next three none."""
    failed = ["exit 1 @5: NaN"] * 2
    cloud.status(*[["none", "none"], failed] * 9)
    cloud.rule(r"host\.sh start", {"make": "run/sft/checkpoints/100", "out": ":aqaa: start 0 ok\n:aqaa: start 1 ok"})
    done = cloud.run(*TPU, "--max-failures=3")
    assert done.returncode == 4
    assert "stopping after 3 failures without a saved step beyond 100" in done.stderr.splitlines()[-1]
    assert phases(cloud).count("start") == 3
    assert not cloud.calls("queued-resources", "delete")  # someone will want to look


def test_a_failed_check_is_a_failure_and_names_the_host(cloud):
    cloud.rule(r"host\.sh preflight", {"out": ":aqaa: preflight 0 ok\n:aqaa: preflight 1 failed 1: preflight FAIL git"})
    done = cloud.run(*TPU, "--max-failures=2")
    assert (
        done.returncode == 4
        and "preflight failed on 1 of 2 workers: run1/1 (failed 1: preflight FAIL git)" in done.stderr
    )
    assert "start" not in phases(cloud)
    assert cloud.run(*TPU, "--preflight=0").returncode == 0


def test_slices_are_trained_together(cloud):
    done = cloud.run(*TPU, "--slices=3", "--min-bandwidth=40")
    assert done.returncode == 0, done.stderr
    (create,) = cloud.calls("create")
    assert "--node-count=3" in create and "--node-prefix=run1" in create and not any("--node-id" in w for w in create)
    asked = cloud.calls("--worker=all", "host.sh preflight")
    assert sorted(call[5] for call in asked) == ["run1-0", "run1-1", "run1-2"]
    assert asked[0][-1].endswith("preflight --devices=24 --min-bandwidth=40")


def test_the_same_command_attaches_to_what_runs(cloud):
    cloud.status(["running 1", "running 1"], ["exit 0 @9: ", "exit 0 @9: "])
    done = cloud.run(*TPU)
    assert done.returncode == 0 and "attaching" in done.stderr and phases(cloud) == []


def test_end_stops_and_deletes(cloud):
    cloud.run(*TPU, "--keep")
    assert not cloud.calls("queued-resources", "delete")
    done = cloud.run(*TPU, "--end")
    assert done.returncode == 0 and phases(cloud)[-1] == "stop" and len(cloud.calls("queued-resources", "delete")) == 1


@pytest.mark.parametrize("slices", ["1", "2"])
def test_a_dry_run_prints_what_a_run_does_and_calls_nothing(cloud, slices):
    arguments = [*TPU, f"--slices={slices}", "--set-env=NOTE=it's a test", "--", "--config.name=a b"]
    cloud.settings(workers=1)
    planned = cloud.run(*arguments[:-2], "--dry-run", *arguments[-2:])
    assert planned.returncode == 0, planned.stderr
    assert not cloud.calls()
    plan = [shlex.split(line) for line in planned.stdout.splitlines()]
    cloud.run(*arguments)

    def shape(calls):  # without times and temporary folders
        texts = {" ".join(call) for call in calls if call[0] == "gcloud"}
        return sorted(re.sub(r"/tmp/tmp\.\w+|\d{8}T\d{6}Z", "", text) for text in texts)

    assert shape(plan) == shape(cloud.calls())


def test_bad_usage_is_one_line(cloud):
    for arguments, message in [
        (["--topology=v9:2x2"], "expected --topology like v5p:8x8x16"),
        (["--accelerator=v5p-16"], "give --topology or --accelerator, not both"),
        (["--name=Run_1"], "--name is Run_1; expected"),
        (["--run-dir=/tmp/x"], "--run-dir is /tmp/x; expected gs://BUCKET/PATH"),
        (["--slices=two"], "--slices is two; expected a whole number"),
        (["--provision=cheap"], "expected on-demand, spot or reserved"),
        (["--config=configs/none.py"], "no such file"),
        (["--set-env=A"], "expected KEY=VALUE"),
        (["word"], "unexpected argument word"),
        (["--backend=slurm"], "expected tpu-vm, gke or local"),
    ]:
        done = cloud.run(*TPU, *arguments)
        assert done.returncode == 2 and message in done.stderr, (arguments, done.stderr)
    assert not cloud.calls()
