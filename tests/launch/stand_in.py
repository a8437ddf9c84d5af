"""Stands in for gcloud, kubectl, xpk and gcsfuse: records how it is called, and answers as the test's rules say.

Called through a link of the tool's name. ``rules.json`` beside it is a list of [pattern, answers]: the first pattern
found in the call gives its next answer (the last one again and again): {"code", "out", "err", "make": a folder}.
Without a rule there is a small cloud: a slice that is active once created, workers that say "ok", and a bucket that is
a folder.
With "hosts" in ``cloud.json`` what ssh runs is run, for each worker in a home of its own.
"""

import fcntl
import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent.parent
TOOL = Path(sys.argv[0]).name
ARGV = [TOOL, *sys.argv[1:]]
CALL = " ".join(ARGV)


def ruled():
    """The answer of the first rule that fits, or None."""
    rules, counts = json.loads((HERE / "rules.json").read_text()), HERE / "counts.json"
    with (HERE / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (HERE / "calls.jsonl").open("a") as record:
            record.write(json.dumps(ARGV) + "\n")
        seen = json.loads(counts.read_text()) if counts.exists() else {}
        for pattern, answers in rules:
            if re.search(pattern, CALL):
                number = seen.get(pattern, 0)
                counts.write_text(json.dumps({**seen, pattern: number + 1}))
                return answers[min(number, len(answers) - 1)]
    return None


def local(name):
    return (
        Path(HERE / "bucket" / name.removeprefix("gs://").split("/", 1)[1]) if name.startswith("gs://") else Path(name)
    )


def storage(verb, *words):
    import shutil

    words = [w for w in words if not w.startswith("--")]
    if verb == "ls":
        pattern = words[0].removeprefix("gs://").split("/", 1)[1]
        found = [p for folder in (HERE / "bucket").glob(pattern) for p in folder.iterdir()]
        if not found:
            return {"code": 1, "err": "ERROR: One or more URLs matched no objects."}
        return {"out": "\n".join(f"gs://b/{p.relative_to(HERE / 'bucket')}/" for p in found)}
    source, target = local(words[0]), local(words[1])
    sources = list(source.parent.glob(source.name))
    if not sources:
        return {"code": 1, "err": "ERROR: The following URLs matched no objects or files"}
    (target if words[1].endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
    for path in sources:
        shutil.copy(path, target)
    return {}


def slice_of(verb, name, *words):
    there = HERE / f"slice-{name}"
    if verb == "create":
        there.touch()
    elif not there.exists():
        return {"code": 1, "err": f"ERROR: NOT_FOUND: {name}"}
    elif verb == "delete":
        there.unlink()
    return {"out": "ACTIVE" if verb == "describe" else ""}


def on_worker(node, worker, command):
    import subprocess

    home = HERE / "hosts" / f"{node}-{worker}"
    home.mkdir(parents=True, exist_ok=True)
    env = {
        "PATH": f"{HERE / 'bin'}:/usr/bin:/bin",
        "HOME": str(home),
        "TPU_WORKER_ID": str(worker),
        "AQAA_GRACE_SECONDS": "5",
    }
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout


def ssh(node, *words):
    cloud = json.loads((HERE / "cloud.json").read_text())
    given = dict(w.removeprefix("--").split("=", 1) for w in words if "=" in w)
    if given["worker"] != "all":
        return {"out": "log of worker 0"}
    if cloud.get("hosts"):
        return {"out": "".join(on_worker(node, w, given["command"]) for w in range(cloud["workers"]))}
    phase = re.search(r"host\.sh (\w+)", given["command"])[1]
    says = {"status": "exit 0 @1: done"}.get(phase, "ok")
    return {"out": "".join(f":aqaa: {phase} {w} {says}\n" for w in range(cloud["workers"]))}


def answer():
    if (found := ruled()) is not None:
        return found
    if TOOL == "gcsfuse":
        os.rmdir(ARGV[-1])
        os.symlink(HERE / "bucket", ARGV[-1])
    words = [w for w in ARGV if w != "alpha"]
    if words[:2] == ["gcloud", "storage"]:
        return storage(*words[2:])
    if words[3:4] == ["queued-resources"]:
        return slice_of(*words[4:])
    if words[3:5] == ["tpu-vm", "ssh"]:
        return ssh(*words[5:])
    if words[3:5] == ["tpu-vm", "describe"]:
        workers = json.loads((HERE / "cloud.json").read_text())["workers"]
        return {"out": str(workers) if "len()" in CALL else "READY"}
    return {}


said = answer()
if said.get("make"):
    (HERE / "bucket" / said["make"]).mkdir(parents=True, exist_ok=True)
if said.get("out"):
    print(said["out"])
if said.get("err"):
    print(said["err"], file=sys.stderr)
sys.exit(said.get("code", 0))
