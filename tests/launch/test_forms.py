"""The scripts are clean, and what they ask for is what the tools understand, where these are at hand."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from pretend_cloud import COMMON, ROOT, TPU

# In the environment of the tests (extra [dev]), which need not be activated.
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/parts/*.sh")])


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck (extra [dev])")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run([SHELLCHECK, "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_are_short_and_parse():
    for script in SCRIPTS:
        assert len(script.read_text().splitlines()) <= 300, script
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0, script


def test_the_example_settings_are_known(cloud):
    done = cloud.run("--env=launch/example.env", "--dry-run", *COMMON, f"--env={ROOT / 'launch/example.env'}")
    assert done.returncode == 0, done.stderr
    assert "--type=v5p --topology=4x16x16" in done.stdout and "--reserved" in done.stdout
    bad = cloud.folder / "bad.env"
    bad.write_text("# a comment\nAQAA_ZON=z\n")
    done = cloud.run(*TPU, f"--env={bad}")
    assert done.returncode == 2 and f"{bad}: there is no option zon" in done.stderr


def test_flags_beat_the_environment_which_beats_the_file(cloud, monkeypatch):
    settings = cloud.folder / "my.env"
    settings.write_text("AQAA_ZONE=file\nAQAA_PROJECT=file\nAQAA_NETWORK=file\n")
    arguments = [a for a in TPU if not a.startswith(("--zone", "--project"))]
    command = [
        "bash",
        str(cloud.code / "launch" / "tpu_run.sh"),
        *arguments,
        f"--env={settings}",
        "--dry-run",
        "--zone=flag",
    ]
    env = {**os.environ, "AQAA_ZONE": "environment", "AQAA_PROJECT": "environment"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    create = next(line for line in done.stdout.splitlines() if "create" in line)
    assert "--zone=flag" in create and "--project=environment" in create and "--network=file" in create


def test_uncommitted_work_is_not_shipped_unless_said(cloud, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(cloud.code, mine)
    cloud.code = mine
    (mine / "configs" / "pocket.py").write_text("changed = 1\n")
    done = cloud.run(*TPU)
    assert done.returncode == 2 and "uncommitted changes (1 files,  M configs/pocket.py ...)" in done.stderr
    assert not cloud.calls()
    done = cloud.run(*TPU, "--allow-dirty")
    assert done.returncode == 0, done.stderr
    (archive,) = (cloud.folder / "bucket" / "run" / "launch").glob("*.tar")
    text = subprocess.run(["tar", "-xOf", str(archive), "configs/pocket.py"], capture_output=True, text=True).stdout
    assert text == "changed = 1\n"
    (snapshot,) = (cloud.folder / "bucket" / "run" / "launch").glob("*.txt")
    assert f"sha: {archive.stem}\ndirty: 1\n" in snapshot.read_text()
    (mine / "configs" / "new.py").write_text("")
    assert "uncommitted changes (2 files" in cloud.run(*TPU).stderr


@pytest.mark.long
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="needs gcloud: it knows its own flags")
def test_gcloud_knows_every_command(cloud, tmp_path):
    """gcloud's own check of command lines: it runs nothing, asks for no account and reaches no network."""
    gcloud = shutil.which("gcloud")
    plan = cloud.run(*TPU, "--slices=2", "--provision=reserved", "--valid-until=6h", "--dry-run").stdout
    others = [a for a in TPU if not a.startswith("--topology")]
    more = [
        "--accelerator=v5p-8",
        "--provision=spot",
        "--network=n",
        "--subnetwork=s",
        "--service-account=a@b",
        "--internal-ips",
    ]
    plan += cloud.run(*others, *more, "--dry-run").stdout
    lines = {
        re.sub(r"--command=.*", "--command=true'", line) for line in plan.splitlines() if line.startswith("gcloud")
    }
    # The check splits words at blanks, and takes a positional behind --recursive for its value.
    lines = {line.replace("'", "").replace("--recursive ", "") for line in lines}
    assert len(lines) > 15
    env = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "none"), "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false"}
    for line in sorted(lines):
        command = [gcloud, "meta", "lint-gcloud-commands", f"--command-string={line}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        (found,) = json.loads(done.stdout)
        assert found["success"], (line, found["error_message"])
