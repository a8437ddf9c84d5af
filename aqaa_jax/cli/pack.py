"""``aqaa pack DST SRC:MIX ... --length 4096``: records with codes into packed training data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """\
SRC is what `aqaa tokenize` made, or a manifest with text and codes. MIX says what its records teach: a stage of the
papers (pretrain_1, pretrain_2, pretrain_3, sft_1, sft_2, dpo), or tasks with their shares of the rows, those joined
by + in rows together:

  aqaa pack sft talk.codes:sft_1 --length 4096
  aqaa pack pre books.codes:continuation=2,asr+tts=2 talk.codes:interleaved=1 web.jsonl:text=3 --length 8192

The shares of all inputs are one mixture. DST goes into a recipe as pretrain.dataset or sft1.dataset.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa pack",
        description="Pack records into rows for training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("target", metavar="DST", help="the packed dataset's folder")
    p.add_argument("inputs", nargs="+", metavar="SRC:MIX", help="records and what they teach")
    p.add_argument("--length", type=int, required=True, help="tokens per row")
    p.add_argument("--model", help="model folder with text tokenizer and configuration (default: the pocket model)")
    p.add_argument("--seed", type=int, default=0, help="of the plan (default %(default)s)")
    p.add_argument("--processes", type=int, default=1, help="workers (default %(default)s)")
    p.add_argument("--strict", action="store_true", help="stop at the first bad record")
    return p


def mixture(text: str) -> list[tuple[tuple[str, ...], float]]:
    """``asr+tts=2,text`` or a stage's name as (tasks of a stream, share). Raises ``ValueError`` naming a bad one."""
    from aqaa_jax.data.examples import TASKS, shares

    if "=" not in text and "," not in text and not set(text.split("+")) <= set(TASKS):
        return [((task,), share) for task, share in shares(text).items()]
    streams = []
    for entry in text.split(","):
        tasks, _, share = entry.partition("=")
        try:
            streams.append((tuple(tasks.split("+")), float(share or 1)))
        except ValueError:
            raise ValueError(f"share {share!r} in {text!r} is no number") from None
    return streams


def run(argv: list[str]) -> int:
    """Parse, pack, say how full the rows are."""
    args = parser().parse_args(argv)
    from aqaa_jax.checkpoint.folder import TEXT_MODEL, read_config
    from aqaa_jax.data.examples import Coder
    from aqaa_jax.data.packed import Stream, build, file_hash
    from aqaa_jax.data.sources import opened
    from aqaa_jax.inference.system import shipped_folder
    from aqaa_jax.tokens.text import TextTokenizer
    from aqaa_jax.tokens.vocab import Vocab

    model = Path(args.model or shipped_folder())
    config = read_config(model)
    vocab = Vocab(config.vocab)
    streams = []
    for number, text in enumerate(args.inputs):
        path, _, mix = text.rpartition(":")
        if not path:
            raise ValueError(f"{text!r} says not what it teaches; expected SRC:MIX")
        source = opened(path)
        streams += [Stream(f"{number}-{'+'.join(tasks)}", source, tasks, share) for tasks, share in mixture(mix)]
    index = build(
        args.target,
        streams,
        Coder(TextTokenizer.load(model / TEXT_MODEL, vocab), vocab, config.weave),
        length=args.length,
        tokenizer=file_hash(model / TEXT_MODEL),
        seed=args.seed,
        processes=args.processes,
        strict=args.strict,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    rows = sum(stream["rows"] for stream in index["streams"].values())
    print(f"{rows} rows of {args.length} tokens in {len(streams)} streams, in {args.target}")
    return 0
