"""``make bench``: full published sizes, random weights, this project and its PyTorch peers in turn on one machine.

Both sides of an item run one after the other in processes of their own; the table gives wall seconds and CPU
seconds per second of audio (or per token) and their ratios: above 1 this project is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from items import ITEMS

from aqaa_jax.atomic import write_json

HERE = Path(__file__).parent


def side(python: str, script: str, item: str) -> dict[str, float]:
    """The measurement of one side, or a one-line error."""
    done = subprocess.run([python, str(HERE / script), item], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"bench: {script} {item} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", required=True, help="Python of the environment with the PyTorch peers")
    parser.add_argument("--items", default=",".join(ITEMS), help="comma-separated, of: %(default)s")
    parser.add_argument("--json", default="out/bench.json", help="where the figures go (default %(default)s)")
    args = parser.parse_args()
    chosen = args.items.split(",")
    if unknown := set(chosen) - set(ITEMS):
        parser.error(f"unknown items {', '.join(sorted(unknown))}; expected some of {', '.join(ITEMS)}")
    print(f"{os.cpu_count()} CPU cores; per second of audio, or per token\n")
    heads = ("ours wall", "peer wall", "ratio", "ours CPU", "peer CPU", "ratio", "aim")
    print(f"{'item':15}" + "".join(f"{head:>11}" for head in heads))
    report = {}
    for item in chosen:
        what, unit, amount, wanted = ITEMS[item]
        ours, peer = side(sys.executable, "ours.py", item), side(args.peers_python, "peers.py", item)
        row = [ours["wall_seconds"] / amount, peer["wall_seconds"] / amount]
        row += [ours["cpu_seconds"] / amount, peer["cpu_seconds"] / amount]
        wall, cpu = row[1] / row[0], row[3] / row[2]
        shown = (*row[:2], wall, *row[2:], cpu, wanted)
        print(f"{item:15}" + "".join(f"{value:11.4f}" for value in shown), flush=True)
        names = ("ours_wall", "peer_wall", "ours_cpu", "peer_cpu")
        report[item] = {"what": what, "per": unit, **dict(zip(names, row, strict=True)), "wall_ratio": wall}
        report[item] |= {"cpu_ratio": cpu, "wanted": wanted}
    write_json(args.json, report)
    print(f"\nfigures in {args.json}")


if __name__ == "__main__":
    main()
