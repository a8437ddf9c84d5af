"""``aqaa upcycle DENSE -o MOE --experts=8 --top-k=2``: a dense model as a mixture of experts."""

from __future__ import annotations

import argparse
import os
import sys

EPILOG = """\
Every expert is a copy of the dense layer and the routers are random, so the new model answers as the dense one
does until it is trained further: name it in a recipe as `start`, with the same experts in the recipe's decoder.

  aqaa upcycle pocket -o runs/moe --experts=8 --top-k=2 --noise=0.01
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa upcycle",
        description="Make a mixture of experts of a dense model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("dense", metavar="MODEL", help="the model folder to begin from")
    p.add_argument("-o", "--output", required=True, help="the model folder to write")
    p.add_argument("--experts", type=int, required=True, help="how many there are in a layer")
    p.add_argument("--top-k", type=int, required=True, help="how many a token goes to")
    p.add_argument("--score", default="softmax", help="of the routers: softmax or sigmoid")
    p.add_argument("--bias-rate", type=float, default=0.0, help="step of the balancing bias (default 0: none)")
    p.add_argument("--noise", type=float, default=0.0, help="relative, on every weight of every copy (default 0)")
    p.add_argument("--seed", type=int, default=0, help="of routers and noise")
    return p


def run(argv: list[str]) -> int:
    """Parse, write, say where it is."""
    args = parser().parse_args(argv)
    import jax

    from aqaa_jax.checkpoint.upcycle import upcycle
    from aqaa_jax.config import ExpertsConfig
    from aqaa_jax.convert.progress import Progress
    from aqaa_jax.inference.system import shipped_folder
    from aqaa_jax.nn.router import check_experts

    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # all is done on the host; leave the accelerator to others
    config = ExpertsConfig(experts=args.experts, top_k=args.top_k, score=args.score, bias_rate=args.bias_rate)
    check_experts(config)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    dense = shipped_folder() if args.dense == "pocket" else args.dense
    watch = lambda what, total: Progress(what, total, say)  # noqa: E731
    upcycle(dense, args.output, config, seed=args.seed, noise=args.noise, watch=watch)
    print(f"{args.dense} with {args.experts} experts, {args.top_k} for a token, in {args.output}")
    return 0
