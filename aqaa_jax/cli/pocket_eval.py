"""``aqaa pocket-eval``: judge a pocket model on held-out spoken questions: the pocket set of ``aqaa eval``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


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
    p.add_argument("--runs", default="out/eval", metavar="DIR", help="answers and report go there (default out/eval)")
    p.add_argument("--transcript-first", action="store_true", help="let the model write down each question first")
    p.add_argument("--seed", type=int, default=2024, help="of the evaluation questions (default 2024)")
    return p


def run(argv: list[str]) -> int:
    """Evaluate, print a table, write JSON. A run of the same model and questions goes on where it stopped."""
    args = parser().parse_args(argv)
    if args.questions < 10:
        raise ValueError(f"--questions is {args.questions}; expected at least 10")
    from aqaa_jax.atomic import write_json
    from aqaa_jax.evaluation import judging, report, transcribe
    from aqaa_jax.evaluation.answering import Answering
    from aqaa_jax.evaluation.judges import make_judge
    from aqaa_jax.evaluation.measures import measure
    from aqaa_jax.evaluation.pocket import PocketSets
    from aqaa_jax.evaluation.run import about_model, begin
    from aqaa_jax.inference.answer import Aqaa

    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    first = args.transcript_first
    cases = PocketSets(args.cache, questions=args.questions, seed=args.seed, transcript_first=first).all()
    about = {**about_model(args.model), "seed": args.seed, "transcript_first": first, "questions": args.questions}
    name = f"pocket-{about['sha256'][:8]}-{args.seed}-{args.questions}" + ("-transcript" if first else "")
    one = begin(Path(args.runs) / name, cases, about)
    Answering(Aqaa.load(args.model)).answer(one, say)
    transcribe.transcribe(one, transcribe.Pocketsphinx(), say)
    measure(one, say)
    for judge in ("exact", "wer", "cer"):
        judging.judge(one, make_judge(judge), say)
    reports = report.write_report([one], one.folder)
    print(report.summary(reports))
    if args.json:
        write_json(args.json, reports[one.folder.name])
        say(f"written to {args.json}")
    return 0
