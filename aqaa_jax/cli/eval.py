"""``aqaa eval STEP RUN``: answers, transcripts, judgements and a report, each a file that can be made again alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """\
steps
  run        all four, one after the other
  generate   the model's answers to a set          RUN/answers.jsonl, RUN/answers/*.wav
  transcribe what a recogniser hears in them       RUN/transcripts.jsonl
  judge      scores, and those of the controls     RUN/judgements.NAME.jsonl
  report     figures with 95 % intervals, plots    RUN/report.json, report.md, report.html
  page       a page to listen to and rate          RUN/listen.html
  ratings    what raters saved there               RUN/judgements.mos.jsonl
What is done is skipped, what failed is done again. A set is `pocket`, `stepeval:FOLDER` (a clone of StepEval-Audio-360)
or a JSONL file. Judges: exact, wer, cer, and with --endpoint chat, relevance, factuality (the key is read from the
environment variable OPENAI_API_KEY, or the one --key-variable names).

  aqaa eval run out/eval/pocket --set pocket
  aqaa eval run out/eval/mine --set mine.jsonl --model DIR --judges exact,wer,chat \\
      --endpoint http://localhost:8000/v1 --judge-model NAME
  aqaa eval report out/eval/sft1 out/eval/dpo -o out/eval/both        two runs side by side
"""
STEPS = ("run", "generate", "transcribe", "judge", "report", "page", "ratings")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa eval",
        description="Evaluate a model's spoken answers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("step", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    p.add_argument("run", metavar="RUN", help="folder of the run; its name stands in the report")
    p.add_argument("others", nargs="*", metavar="…", help="report: further runs; ratings: files of ratings")
    p.add_argument("--set", metavar="SET", help="what is asked: pocket, stepeval:FOLDER or FILE.jsonl")
    p.add_argument("--model", metavar="DIR", help="model folder (default: the shipped pocket model)")
    p.add_argument("--seed", type=int, default=0, help="of sampling, controls and pages (default 0)")
    p.add_argument("--questions", type=int, default=200, help="pocket: spoken questions per split (default 200)")
    p.add_argument("--cache", default="out/speech", metavar="DIR", help="pocket: rendered speech (default out/speech)")
    p.add_argument(
        "--transcriber",
        default="pocketsphinx",
        metavar="WHICH",
        help="pocketsphinx (default), whisper:MODEL, or command:PROGRAM … {wav}",
    )
    p.add_argument("--judges", default="exact,wer,cer", metavar="A,B", help="default: exact,wer,cer")
    p.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible server of the language-model judges")
    p.add_argument("--judge-model", default="", metavar="NAME", help="the model it is to use")
    p.add_argument("--judge-runs", type=int, default=1, metavar="N", help="replies per judgement, averaged (default 1)")
    p.add_argument("--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable of the key")
    p.add_argument("--controls", type=int, default=50, metavar="N", help="of each kind, per judge (default 50)")
    p.add_argument("-o", "--output", metavar="DIR", help="report: where it goes (default: RUN)")
    return p


def run(argv: list[str]) -> int:
    """Do the step; progress goes to stderr, the report's figures to stdout."""
    args = parser().parse_args(argv)
    if args.others and args.step not in ("report", "ratings"):
        raise ValueError(f"unexpected argument {args.others[0]!r} to the step {args.step!r}")
    from aqaa_jax.evaluation import listening, report
    from aqaa_jax.evaluation.run import open_run

    if args.step in ("run", "generate"):
        _generate(args)
    if args.step in ("run", "transcribe"):
        _transcribe(args)
    if args.step in ("run", "judge"):
        _judge(args)
    if args.step == "page":
        print(listening.write_page(open_run(args.run), controls=min(args.controls, 5), seed=args.seed))
    if args.step == "ratings":
        rated = listening.import_ratings(open_run(args.run), args.others)
        print(f"{rated} items rated in {args.run}")
    if args.step in ("run", "report"):
        runs = [open_run(folder) for folder in (args.run, *args.others)]
        folder = Path(args.output or args.run)
        print(report.summary(report.write_report(runs, folder)))
        say(f"written to {folder / 'report.html'}")
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _generate(args: argparse.Namespace) -> None:
    from aqaa_jax.evaluation.answering import Answering
    from aqaa_jax.evaluation.run import about_model, begin
    from aqaa_jax.inference.answer import Aqaa

    if not args.set:
        raise ValueError("--set is missing; expected pocket, stepeval:FOLDER or FILE.jsonl")
    cases = _cases(args)
    run = begin(args.run, cases, {**about_model(args.model), "seed": args.seed})
    Answering(Aqaa.load(args.model), seed=args.seed).answer(run, say)


def _cases(args: argparse.Namespace):
    from aqaa_jax.evaluation.cases import read_jsonl
    from aqaa_jax.evaluation.pocket import PocketSets
    from aqaa_jax.evaluation.stepeval import read_stepeval

    kind, _, folder = args.set.partition(":")
    if args.set == "pocket":
        return PocketSets(args.cache, questions=args.questions).all()
    if kind == "stepeval" and folder:
        return read_stepeval(folder)
    if args.set.endswith(".jsonl"):
        return read_jsonl(args.set)
    raise ValueError(f"--set is {args.set!r}; expected pocket, stepeval:FOLDER or FILE.jsonl")


def _transcribe(args: argparse.Namespace) -> None:
    from aqaa_jax.evaluation.measures import measure
    from aqaa_jax.evaluation.run import open_run
    from aqaa_jax.evaluation.transcribe import transcribe, transcriber

    run = open_run(args.run)
    transcribe(run, transcriber(args.transcriber, run), say)
    measure(run, say)


def _judge(args: argparse.Namespace) -> None:
    from aqaa_jax.evaluation.judges import make_judge
    from aqaa_jax.evaluation.judging import judge
    from aqaa_jax.evaluation.run import open_run

    run, endpoint = open_run(args.run), None
    if args.endpoint:
        from aqaa_jax.evaluation.endpoint import Endpoint

        endpoint = Endpoint(args.endpoint, args.judge_model, args.key_variable)
    judges = [make_judge(name, endpoint, args.judge_runs) for name in args.judges.split(",") if name]
    for one in judges:
        judge(run, one, say, controls=args.controls, seed=args.seed)
