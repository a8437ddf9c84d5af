"""Rows per second of a packed dataset against Grain's own first-fit packing, on the same examples in the same run.

    python benchmarks/packing.py [--dataset DIR] [--length 1024] [--workers 0] [--json out/packing.json]

Without ``--dataset`` it packs the questions and answers of the pocket corpus with made-up codes, as many as the
sentences take to say. Both sides read the same units from the same files, and hand over batches of arrays; the rounds
alternate. ``fill`` is the share of places that hold a token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from absl import flags

from aqaa_jax.atomic import write_json
from aqaa_jax.checkpoint.folder import TEXT_MODEL, read_config
from aqaa_jax.data.corpus import question_utterances
from aqaa_jax.data.examples import Coder
from aqaa_jax.data.packed import Packed, Stream, build
from aqaa_jax.data.reader import Reader
from aqaa_jax.data.records import Codes, Part, Record, Turn
from aqaa_jax.data.units import Units
from aqaa_jax.inference.system import shipped_folder
from aqaa_jax.tokens.text import TextTokenizer
from aqaa_jax.tokens.vocab import Vocab


class Sayings:
    """Pocket questions with their answers as records, codes at random."""

    def __init__(self, count: int):
        self.items = question_utterances(count, 0)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        item, rng = self.items[index], np.random.default_rng(index)

        def part(text: str) -> Part:
            groups = round((len(text.split()) * 60 / item.utterance.rate_wpm + 0.2) / 0.12)
            return Part(text, codes=Codes(rng.integers(0, 1024, 2 * groups), rng.integers(0, 4096, 3 * groups)))

        turns = (Turn("human", (part(item.utterance.text),)), Turn("assistant", (part(item.answer),)))
        return Record(item.id, turns)

    def fingerprint(self) -> str:
        return f"sayings {len(self.items)}"


def made(folder: Path, length: int, count: int) -> Packed:
    model = shipped_folder()
    config = read_config(model)
    vocab = Vocab(config.vocab)
    coder = Coder(TextTokenizer.load(model / TEXT_MODEL, vocab), vocab, config.weave)
    build(folder, [Stream("all", Sayings(count), ("asr", "aqta", "aqtaa"))], coder, length=length, tokenizer="bench")
    return Packed(folder)


class Arrays:
    """A unit as Grain's packer wants it."""

    def __call__(self, unit) -> dict[str, np.ndarray]:
        (example,) = unit
        return {"tokens": example.ids, "loss_mask": example.loss_mask.astype(np.int32)}


def theirs(units: Units, length: int, batch: int, bins: int, workers: int, threads: int) -> Iterator:
    dataset = grain.MapDataset.source(units).shuffle(seed=0).map(Arrays()).repeat()
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64))
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=64))
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset, length_struct={"tokens": length, "loss_mask": length}, num_packing_bins=bins, seed=0, shuffle_bins=True
    )
    return iter(packed.batch(batch))


def timed(iterator: Iterator, batches: int, segments: str) -> tuple[float, float]:
    """(batches per second, fill) over the next ``batches``."""
    began, full = time.perf_counter(), []
    for _ in range(batches):
        full.append(np.mean(np.asarray(next(iterator)[segments]) > 0))
    return batches / (time.perf_counter() - began), float(np.mean(full))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a packed dataset (default: one is made)")
    parser.add_argument("--stream", help="of the dataset (default: its first)")
    parser.add_argument("--length", type=int, default=1024, help="tokens per row of the made one (default %(default)s)")
    parser.add_argument("--examples", type=int, default=2000, help="records of the made one (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="rows per batch (default %(default)s)")
    parser.add_argument("--bins", default="16,64", help="open rows of Grain's packer (default %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes of each side (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are taken over these (default %(default)s)")
    parser.add_argument("--json", help="where the figures go")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    with tempfile.TemporaryDirectory() as folder:
        packed = Packed(args.dataset) if args.dataset else made(Path(folder), args.length, args.examples)
        name = args.stream or sorted(packed.streams)[0]
        packed.streams, packed.weights = {name: packed.streams[name]}, {name: 1.0}
        units = packed.streams[name][0]
        reader = Reader(packed, batch=args.batch, seed=0, workers=args.workers, threads=args.threads)
        sides = {"plan": (reader.batches(), "segment_ids")}
        for bins in map(int, args.bins.split(",")):
            stream = theirs(units, packed.length, args.batch, bins, args.workers, args.threads)
            sides[f"grain, {bins} bins"] = (stream, "tokens_segment_ids")
        batches, rates = 800 // args.batch, {side: [] for side in sides}
        for number in range(args.rounds + 1):
            for side, (iterator, segments) in sides.items():
                rate, fill = timed(iterator, batches, segments)
                if number:  # the first round starts threads and workers
                    rates[side].append((rate * args.batch, fill))
        figures = {}
        for side, rounds in rates.items():
            rows = statistics.median(rate for rate, _ in rounds)
            fill = statistics.mean(fill for _, fill in rounds)
            tokens = rows * fill * packed.length
            figures[side] = {"rows_per_s": round(rows, 1), "fill": round(fill, 4), "tokens_per_s": round(tokens)}
            print(f"{side:16} {rows:9.1f} rows/s  {fill:6.1%} full  {tokens:12.0f} tokens/s")
        if args.json:
            write_json(args.json, {**vars(args), "stream": name, "units": len(units), **figures})


if __name__ == "__main__":
    main()
