"""``aqaa pocket-eval``: judge a pocket model on held-out spoken questions."""

from __future__ import annotations

import argparse
import sys


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa pocket-eval", description="Judge a pocket model on held-out spoken questions."
    )
    p.add_argument("--model", metavar="DIR", help="model folder (default: the shipped pocket model)")
    p.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    p.add_argument("--questions", type=int, default=200, help="spoken questions per split (default 200)")
    p.add_argument(
        "--cache", default="out/speech", metavar="DIR", help="folder of rendered speech (default out/speech)"
    )
    p.add_argument("--transcript-first", action="store_true", help="let the model write down each question first")
    p.add_argument("--seed", type=int, default=2024, help="of the evaluation questions (default 2024)")
    return p


def run(argv: list[str]) -> int:
    """Evaluate, print a table, write JSON."""
    args = parser().parse_args(argv)
    if args.questions < 10:
        raise ValueError(f"--questions is {args.questions}; expected at least 10")
    from aqaa_jax.atomic import write_json
    from aqaa_jax.evaluation.pocket import PocketEvaluation, summary
    from aqaa_jax.inference.answer import Aqaa

    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    model = Aqaa.load(args.model)
    evaluation = PocketEvaluation(model, args.cache, say, questions=args.questions, seed=args.seed)
    report = {"model": args.model or "shipped", "transcript_first": args.transcript_first, "seed": args.seed}
    report |= evaluation.run(transcript_first=args.transcript_first)
    print(summary(report))
    if args.json:
        write_json(args.json, report)
        say(f"written to {args.json}")
    return 0
