"""A cloud that is a folder: stand-ins on PATH, what they were asked, and the launcher run against them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("gcloud", "kubectl", "xpk", "gcsfuse")
COMMON = ("--name=run1", "--config=configs/pocket.py", "--retry-seconds=0", "--poll-seconds=0")
TPU = ("--backend=tpu-vm", "--project=p", "--zone=z", "--topology=v5p:2x2x2", "--run-dir=gs://b/run", *COMMON)


def repository(folder: Path) -> Path:
    """A small git repository with the launcher in it: what it ships is a commit, and this one is clean."""
    for name in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "aqaa_jax/version.py",
        "configs/pocket.py",
        "configs/sft1.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "launch", folder / "launch")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    return folder


class Cloud:
    """``rule`` scripts answers, ``run`` starts the launcher, ``calls`` is what it asked for."""

    def __init__(self, folder: Path, code: Path):
        self.folder, self.code, self.rules = folder, code, []
        for name in ("bin", "bucket"):
            (folder / name).mkdir()
        program = folder / "bin" / "stand_in.py"
        source = (Path(__file__).parent / "stand_in.py").read_text()
        program.write_text(f"#!{sys.executable} -IS\n{source}")
        program.chmod(0o755)
        for tool in TOOLS:
            (folder / "bin" / tool).symlink_to(program)
        self.settings(workers=2)

    def settings(self, **values):
        (self.folder / "cloud.json").write_text(json.dumps(values))

    def rule(self, pattern: str, *answers: dict):
        self.rules.append([pattern, answers])

    def status(self, *polls: list[str]):
        """What the workers of the slice say, poll after poll; the first answer is to "does it run already"."""
        says = [{"out": "\n".join(f":aqaa: status {i} {text}" for i, text in enumerate(poll))} for poll in polls]
        self.rule(r"host\.sh status", *says)

    def run(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
        (self.folder / "rules.json").write_text(json.dumps(self.rules))
        env = {k: v for k, v in os.environ.items() if not k.startswith("AQAA_")}
        env["PATH"] = f"{self.folder / 'bin'}:{env['PATH']}"
        command = ["bash", str(self.code / "launch" / "tpu_run.sh"), f"--logs={self.folder / 'logs'}", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)

    def calls(self, *words: str) -> list[list[str]]:
        """The calls that have all of ``words`` in one of their arguments each."""
        path = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if all(any(word in argument for argument in call) for word in words)]
