"""``aqaa merge A:5 B:5 C:1 -o D``: the weighted mean of checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import sys

EPILOG = """\
A checkpoint is
  DIR                     a model folder (what `aqaa ask --model` reads); the result is one too
  RUN/sft1/checkpoints    a run's Orbax checkpoints, the newest of them; .../checkpoints/300 is step 300
                          (the averaged model of the run, where it keeps one)
  DIR/decoder.safetensors one file of weights, or the shards of that name; a folder of model-*.safetensors
Model folders go with model folders; the others may be mixed, and give an Orbax checkpoint, or one file if the output
ends in .safetensors. Weights need not add up to 1; 1, 0, 0 returns the first bit for bit. The checkpoints must agree
in names, shapes, tokenizer and in what the weights mean. Neither their size nor the mesh they were saved from matters:
they are read, added in float32 and written slice by slice.

  aqaa merge sft1:5 sft2:5 dpo:1 -o merged        the recipe of Step-Audio-AQAA
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa merge",
        description="Write the weighted mean of checkpoints.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("inputs", nargs="+", metavar="CHECKPOINT:WEIGHT", help="what to average (weight: default 1)")
    p.add_argument("-o", "--output", required=True, help="where the mean goes: a new folder or .safetensors file")
    p.add_argument(
        "--dtype",
        metavar="NAME",
        help="store weights as bfloat16, float16 or float32 (default: as in the first checkpoint)",
    )
    p.add_argument("--accumulate", choices=("float32", "float64"), default="float32", help="dtype of the sums")
    p.add_argument("--json", action="store_true", help="print what went in, with weights and hashes, as JSON")
    return p


def run(argv: list[str]) -> int:
    """Parse, average, say where it is."""
    args = parser().parse_args(argv)
    inputs = [_path_and_weight(text) for text in args.inputs]
    import jax
    import jax.numpy as jnp

    from aqaa_jax.checkpoint.header import check_float
    from aqaa_jax.checkpoint.merge import merge
    from aqaa_jax.convert.progress import Progress

    if args.dtype:
        check_float(args.dtype)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # all is done on the host; leave the accelerator to others
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    watch = lambda what, total: Progress(what, total, say)  # noqa: E731
    dtype = args.dtype and jnp.dtype(args.dtype)
    about = merge(inputs, args.output, dtype=dtype, accumulate=args.accumulate, watch=watch)
    if args.json:
        print(json.dumps({"output": args.output, **about}, indent=1))
    else:
        print(f"mean of {' + '.join(f'{w:g} × {p}' for p, w in inputs)} in {args.output}")
    return 0


def _path_and_weight(text: str) -> tuple[str, float]:
    path, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise ValueError(f"{text}: {weight!r} is not a weight; expected CHECKPOINT:NUMBER") from None
