"""``aqaa preflight --run-dir=DIR``: look at every host before a run."""

from __future__ import annotations

import argparse
import sys


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa preflight",
        description="Check every process of a run before it: same code, versions and flags, clocks, the run directory, "
        "devices, and an all-reduce over all of them. One line per check; exit code 1 names the hosts that fail.",
        epilog="Processes find each other as those of `aqaa train` do (launch/README.md).",
    )
    p.add_argument("--run-dir", required=True, metavar="DIR", help="where checkpoints will go; every host must see it")
    p.add_argument("--devices", type=int, default=0, metavar="N", help="that all processes must have together")
    p.add_argument("--min-bandwidth", type=float, default=0.0, metavar="GB/s", help="of the all-reduce, per device")
    p.add_argument("--max-skew", type=float, default=2.0, metavar="S", help="between clocks, in seconds (default 2)")
    p.add_argument("--megabytes", type=float, default=64.0, metavar="MB", help="to reduce, per device (default 64)")
    return p


def run(argv: list[str]) -> int:
    """Join, check, print."""
    args = parser().parse_args(argv)
    for name in ("devices", "min_bandwidth", "max_skew", "megabytes"):
        if getattr(args, name) < 0 or (name == "megabytes" and not args.megabytes):
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected a positive number")
    from aqaa_jax.training import distributed
    from aqaa_jax.training.preflight import Expected, preflight

    expected = Expected(args.devices, args.min_bandwidth, args.max_skew, args.megabytes)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    with distributed.joined():
        return 0 if preflight(args.run_dir, expected, say) else 1
