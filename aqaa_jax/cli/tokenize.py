"""``aqaa tokenize SRC DST --model DIR``: recordings into stored codes."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

EPILOG = """\
SRC is
  corpus.jsonl   a manifest: one conversation per line, audio paths relative to the file (docs/data.md)
  DIR            a prepared TFDS dataset (the folder with dataset_info.json): of records, or any speech set
                 with --as librispeech | spoken_qa, or with its columns: --as audio=speech,text=text
DST becomes a TFDS dataset of records with codes in place of sound. A bad file is skipped, counted and listed in
DST/report.json. The same command goes on where an interrupted one stopped. With --runner the shards are made by an
Apache Beam pipeline (extra [beam]); arguments that are not listed here go to Beam, and SRC, DST and the model must be
paths that all of its workers see.

  aqaa tokenize talk.jsonl talk.codes --processes 4
  aqaa tokenize /mnt/talk.jsonl /mnt/talk.codes --runner=DirectRunner --direct_num_workers=4
"""


@dataclass(frozen=True)
class Tokenizers:
    """Loads the two tokenizers of a model folder; picklable, for worker processes."""

    model: str

    def __call__(self):
        from aqaa_jax.checkpoint import folder
        from aqaa_jax.codec.tokenizer import DualTokenizer
        from aqaa_jax.parts import abstract

        config = folder.read_config(self.model)
        parts = (folder.read_part(self.model, name, abstract(config, name)) for name in ("linguistic", "semantic"))
        return DualTokenizer.of(config.tokenizer, *parts).encode

    def sha256(self) -> str:
        """Of the configuration and both parts, so that codes of other tokenizers are never mixed in."""
        from aqaa_jax.checkpoint import shards

        digest = hashlib.sha256()
        for name in ("linguistic", "semantic"):
            for path in shards.weight_files(Path(self.model), name):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa tokenize",
        description="Turn audio into stored codes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("source", metavar="SRC", help="a manifest or a prepared TFDS folder")
    p.add_argument("target", metavar="DST", help="the new dataset's folder")
    p.add_argument("--model", help="model folder with the tokenizers (default: the shipped pocket model)")
    p.add_argument("--split", default="train", help="of a TFDS folder (default %(default)s)")
    p.add_argument("--as", dest="shape", help="how to read a foreign TFDS folder")
    p.add_argument("--tail", type=float, default=0.0, help="seconds of silence behind every recording")
    p.add_argument("--strict", action="store_true", help="stop at the first bad file")
    p.add_argument("--shard", type=int, default=256, help="records per shard (default %(default)s)")
    p.add_argument("--processes", type=int, default=1, help="workers (default %(default)s; one per accelerator)")
    p.add_argument("--runner", help="run as an Apache Beam pipeline, for instance DirectRunner")
    return p


def run(argv: list[str]) -> int:
    """Parse, tokenize, say what was skipped."""
    args, rest = parser().parse_known_args(argv)
    if rest and not args.runner:
        raise ValueError(f"unexpected argument {rest[0]!r}")
    for name in ("shard", "processes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; expected at least 1")
    from aqaa_jax.data import beam, tokenizing
    from aqaa_jax.data.sources import opened
    from aqaa_jax.inference.system import shipped_folder

    ears = Tokenizers(os.fspath(args.model or shipped_folder()))
    model = ears.sha256()
    job = tokenizing.TokenizeJob(
        folder=Path(args.target),
        source=opened(args.source, args.split, args.shape),
        ears=ears,
        model=model,
        strict=args.strict,
        tail=args.tail,
        per_shard=args.shard,
    )
    if args.runner:
        report = tokenizing.finish(job, beam.run(job, [f"--runner={args.runner}", *rest]))
    else:
        say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        report = tokenizing.tokenize(job, processes=args.processes, say=say)
    print(f"{report['done']} of {report['records']} records, {report[job.unit]:.1f} s of audio, in {args.target}")
    if report["skipped"]:
        print(f"{report['skipped']} skipped, listed in {Path(args.target) / 'report.json'}")
    return 0
