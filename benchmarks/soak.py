"""Proof that a run survives: kills, other numbers of processes, many saves; and that data is there in time.

    python benchmarks/soak.py [--parts killed,elastic,memory,wait] [--steps 200 --kills 10] [--json F] [--plot F]

killed   a run ended by SIGKILL at random moments, every other one while a checkpoint is being written, and taken up
         again each time, against the run that nobody ended: every array of the final state bit for bit, every loss.
elastic  the same batches on 1, 2, 4 and 1 processes of four devices in all (`launch/local.sh`; SIGTERM in between),
         against one process of four devices: losses, to rounding.
memory   resident memory over many saves of the pocket decoder's state.
wait     share of the time that the pocket decoder's steps wait for batches of packed rows.

Runs are processes of their own; the folder is remade. Exit code 1 if a part is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
TEXT, LINGUISTIC, SEMANTIC = 400, 64, 128  # ids
SITTINGS = (1, 2, 4, 1)  # processes
FLAT, WAIT, ROUNDING = 0.05, 0.02, 1e-5  # what is asked for
TINY = {"embed": 32, "mlp": 64, "heads": 4, "kv_heads": 2, "head_dim": 8, "layers": 2}
POCKET = {"embed": 256, "mlp": 768, "heads": 8, "kv_heads": 2, "head_dim": 32, "layers": 4}


class Talk:
    """Records of a question and an answer with random codes."""

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> Any:
        from aqaa_jax.data.records import Codes, Part, Record, Turn

        rng = np.random.default_rng(index)

        def part(text: str) -> Part:
            groups = int(rng.integers(3, 12))
            codes = Codes(rng.integers(0, LINGUISTIC, 2 * groups), rng.integers(0, SEMANTIC, 3 * groups))
            return Part(text, codes=codes)

        turns = (Turn("human", (part("How many?"),)), Turn("assistant", (part("A few."),)))
        return Record(str(index), turns)

    def fingerprint(self) -> str:
        return "talk"


def vocab_config() -> Any:
    from aqaa_jax.config import VocabConfig

    return VocabConfig(TEXT + LINGUISTIC + SEMANTIC, TEXT, LINGUISTIC, SEMANTIC)


def make_data(folder: Path, length: int) -> Path:
    """A packed dataset in rows of ``length``."""
    from aqaa_jax.config import WeaveConfig
    from aqaa_jax.data.examples import Coder
    from aqaa_jax.data.packed import Stream, build
    from aqaa_jax.tokens.text import train_pocket
    from aqaa_jax.tokens.vocab import Vocab

    vocab = Vocab(vocab_config())
    text = train_pocket(["How many? A few. human assistant"] * 30, folder / "text.model", vocab, size=380)
    coder, streams = Coder(text, vocab, WeaveConfig()), [Stream("talk", Talk(), ("asr", "aqtaa"))]
    build(folder / f"rows-{length}", streams, coder, length=length, tokenizer="soak")
    return folder / f"rows-{length}"


def stage_and_configs(job: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The stage, the loop and the optimizer of a job."""
    from aqaa_jax.config import DecoderConfig, ShardingConfig
    from aqaa_jax.data.reader import Reader
    from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
    from aqaa_jax.sharding.rows import share_of_rows
    from aqaa_jax.sharding.rules import rules_of
    from aqaa_jax.training.config import LoopConfig, OptimizerConfig
    from aqaa_jax.training.stages.language import LanguageStage

    vocab = vocab_config()
    sharding = ShardingConfig(parse_mesh(job["mesh"]), "fsdp")
    host, hosts = share_of_rows(job["rows"], make_mesh(sharding.mesh), rules_of(sharding))
    reader = Reader(job["data"], batch=job["rows"], seed=0, host=host, hosts=hosts)
    sizes = {"vocab": vocab.size, "max_length": 1024, "scan": False, "dtype": "float32", "param_dtype": "float32"}
    stage = LanguageStage("soak", DecoderConfig(**sizes, **job["decoder"]), vocab, reader)
    loop = LoopConfig(**job["loop"], log_every=1, ema_decay=0.99, sharding=sharding)
    return stage, loop, OptimizerConfig(peak_lr=2e-3, warmup_steps=10)


def child(job: dict[str, Any]) -> None:
    """One sitting of a run."""
    from aqaa_jax.training import distributed
    from aqaa_jax.training.loop import train

    with distributed.joined():
        train(*_first(stage_and_configs(job), Path(job["folder"])))


def _first(parts: tuple[Any, Any, Any], folder: Path) -> tuple[Any, ...]:
    return parts[0], folder, *parts[1:]


class Sitting:
    """A child process that runs a job, in ``processes`` processes with ``devices`` each."""

    def __init__(self, job: dict[str, Any], processes: int = 1, devices: int = 1):
        self.folder = Path(job["folder"])
        self.before = rows(self.folder)
        command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(job)]
        cache = self.folder.parent / "compiled"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)}
        if processes > 1:
            command = ["bash", str(ROOT / "launch" / "local.sh"), f"--processes={processes}", f"--devices={devices}",
                       f"--logs={self.folder}-logs", *command]  # fmt: skip
        else:
            env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        self.log = Path(f"{self.folder}.log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def at(self, step: int) -> bool:
        """Whether this sitting has written a row of ``step`` or a later one."""
        now = rows(self.folder)
        return bool(now) and now != self.before and now[-1]["step"] >= step

    def until(self, done: Callable[[], bool]) -> bool:
        """Wait for ``done``; False if the process ended before."""
        while self.process.poll() is None:
            if done():
                return True
            time.sleep(0.001)
        return False

    def end(self, how: signal.Signals | None = None, expected: Sequence[int] = (0,)) -> None:
        """Wait for the end, after a signal if one is given. Raises ``SystemExit`` for another code than expected."""
        if how is not None:
            self.process.send_signal(how)
        code = self.process.wait()
        if code not in expected:
            raise SystemExit(f"soak: a run ended with code {code}; see {self.log}")

    def rss(self) -> float:
        """MiB resident now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def saving(folder: Path) -> bool:
    return any("orbax-checkpoint-tmp" in p.name for p in (folder / "checkpoints").glob("*"))


def arrays(job: dict[str, Any], step: int) -> dict[str, np.ndarray]:
    """Every array of a saved state by name."""
    import jax

    from aqaa_jax.sharding.mesh import make_mesh
    from aqaa_jax.sharding.rules import rules_of
    from aqaa_jax.training.optimizer import make_optimizer
    from aqaa_jax.training.resume import States, open_store
    from aqaa_jax.training.state import init_state

    stage, loop, config = stage_and_configs(job)
    optimizer, store = make_optimizer(config, loop.steps), open_store(Path(job["folder"]), loop, print)
    mesh, table = make_mesh(loop.sharding.mesh), rules_of(loop.sharding)
    begin = lambda start: init_state(stage.init(jax.random.key(0)), optimizer, ema=True)  # noqa: E731
    state = States(begin, None, mesh, table, store).at(step)
    store.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def killed(folder: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(args.seed)
    loop = {"steps": args.steps, "save_every": args.save_every}
    job = {"data": str(data), "decoder": TINY, "rows": 4, "mesh": "", "loop": loop}
    whole, cut = job | {"folder": str(folder / "whole")}, job | {"folder": str(folder / "cut")}
    Sitting(whole).end()
    moments, path, lost = [], folder / "cut", 0
    for number, target in enumerate(sorted(rng.sample(range(1, args.steps - args.save_every), args.kills))):
        sitting, in_save = Sitting(cut), number % 2 == 0
        there = sitting.until(lambda s=sitting, step=target: s.at(step))
        if there and in_save:
            there = sitting.until(lambda: saving(path))
        time.sleep(rng.random() * 0.02)
        if not there or sitting.process.poll() is not None:
            raise SystemExit(f"soak: the run ended before kill {number}; see {sitting.log}")
        sitting.end(signal.SIGKILL, (-signal.SIGKILL,))
        reached = rows(path)[-1]["step"]
        steps = [int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit()]
        moments.append({"step": reached, "saving": saving(path), "goes_on_from": max(steps, default=0)})
        lost += reached - max(steps, default=0)
    Sitting(cut).end()
    aside = len(list(path.glob("checkpoints-damaged/*")))
    one, other = arrays(whole, args.steps), arrays(cut, args.steps)
    differing = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    losses = [[(r["step"], r["loss"]) for r in rows(folder / name)] for name in ("whole", "cut")]
    same = losses[0] == losses[1]
    return {"ok": not differing and same, "kills": moments, "while_saving": sum(m["saving"] for m in moments),
            "steps_done_again": lost, "damaged": aside, "arrays": len(one), "arrays_differing": differing,
            "losses_equal": same, "rows": len(losses[1])}  # fmt: skip


def elastic(folder: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    loop = {"steps": args.steps, "save_every": args.save_every}
    job = {"data": str(data), "decoder": TINY, "rows": 4, "mesh": "fsdp=4", "loop": loop}
    Sitting(job | {"folder": str(folder / "one")}, 1, 4).end()
    path, stops = folder / "several", []
    for number, processes in enumerate(SITTINGS):
        sitting = Sitting(job | {"folder": str(path)}, processes, 4 // processes)
        if number + 1 == len(SITTINGS):
            sitting.end()
            break
        target = args.steps * (number + 1) // len(SITTINGS)
        sitting.until(lambda s=sitting, step=target: s.at(step))
        sitting.end(signal.SIGTERM, (143,))
        stops.append({"processes": processes, "stopped_after": rows(path)[-1]["step"]})
    one, other = rows(folder / "one"), rows(path)
    away = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, other, strict=True)]
    tokens = [r["tokens"] for r in one] == [r["tokens"] for r in other]
    return {"ok": max(away) <= ROUNDING and tokens, "sittings": stops, "rows": len(other),
            "largest_relative_difference": max(away), "tokens_equal": tokens, "differences": away}  # fmt: skip


def memory(folder: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    warm = max(args.saves // 5, 2)
    loop = {"steps": warm + args.saves, "save_every": 1}
    job = {"data": str(data), "decoder": POCKET, "rows": 1, "mesh": "", "loop": loop}
    sitting = Sitting(job | {"folder": str(folder / "memory")})
    resident: list[float] = []
    while sitting.until(lambda: len(rows(folder / "memory")) > len(resident)):
        resident.append(sitting.rss())
    sitting.end()
    measured, few = resident[warm:], max(args.saves // 5, 1)
    ratio = float(np.mean(measured[-few:]) / np.mean(measured[:few]))
    return {"ok": abs(ratio - 1) <= FLAT, "saves": len(measured), "last_over_first": ratio, "resident_mib": resident}


def wait(folder: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    loop = {"steps": args.wait_steps, "save_every": 10 * args.wait_steps}
    job = {"data": str(data), "decoder": POCKET, "rows": 4, "mesh": "", "loop": loop}
    Sitting(job | {"folder": str(folder / "wait")}).end()
    found = [r for r in rows(folder / "wait") if "data_wait" in r]
    share = float(np.mean([r["data_wait"] for r in found]))
    return {"ok": share <= WAIT, "data_wait": share, "largest": max(r["data_wait"] for r in found),
            "steps_per_s": found[-1]["steps_per_s"], "tokens_per_s": float(np.mean([r["tokens_per_s"] for r in found])),
            "shares": [r["data_wait"] for r in found]}  # fmt: skip


PARTS = {"killed": killed, "elastic": elastic, "memory": memory, "wait": wait}


def plot(report: dict[str, Any], folder: Path, path: Path) -> None:
    """Losses with the moments of the kills, differences, memory, waiting."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
    for axis, (name, values) in zip(axes.flat, report["parts"].items(), strict=False):
        axis.set_title(f"{name}: {'ok' if values['ok'] else 'NOT OK'}")
        if name == "killed":
            for run, style in (("whole", "-"), ("cut", ":")):
                axis.plot(
                    [r["step"] for r in rows(folder / run)], [r["loss"] for r in rows(folder / run)], style, label=run
                )
            for moment in values["kills"]:
                axis.axvline(moment["step"], color="red" if moment["saving"] else "grey", linewidth=0.6)
            axis.set(xlabel="step", ylabel="loss (red: killed while saving)")
            axis.legend()
        elif name == "elastic":
            axis.plot(values["differences"])
            axis.set(xlabel="step", ylabel="relative difference of the loss")
        elif name == "memory":
            axis.plot(values["resident_mib"])
            axis.set(xlabel="save", ylabel="resident, MiB", ylim=(0, None))
        else:
            axis.plot([100 * share for share in values["shares"]])
            axis.set(xlabel="step", ylabel="waiting for data, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Run the parts; the report."""
    folder = args.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    small, large = make_data(folder, 128), make_data(folder, 512)
    parts = {}
    for name in args.parts.split(","):
        began = time.monotonic()
        parts[name] = PARTS[name](folder, large if name == "wait" else small, args)
        parts[name]["seconds"] = round(time.monotonic() - began, 1)
        brief = {k: v for k, v in parts[name].items() if not isinstance(v, list)}
        print(f"[soak] {name}: {json.dumps(brief)}", file=sys.stderr, flush=True)
    return {"steps": args.steps, "cores": os.cpu_count(), "load": os.getloadavg()[0], "parts": parts}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--wait-steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, default=Path("out/soak"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child(args.child)
        return 0
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"unknown part {sorted(unknown)[0]!r}; expected some of {', '.join(PARTS)}")
    report = soak(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        plot(report, args.folder, args.plot)
    return 0 if all(part["ok"] for part in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
