"""Log-probabilities of a reference model, computed once and kept beside the pairs, one number per answer id.

A folder of shards of ``SHARD`` pairs, each written in one step, and ``about.json``, which says whose numbers they are:
a hash of the weights, of the configuration that gives them meaning, and of the pairs. All answer ids are kept, so
which of them count may change later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aqaa_jax.atomic import read_json, write_json
from aqaa_jax.checkpoint import hashes
from aqaa_jax.config import DecoderConfig, to_dict
from aqaa_jax.data.pairs import KINDS, Pair, data_hash, padded_lengths, pair_batch, widest_targets
from aqaa_jax.data.tasks import load_audio, save_audio
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training.stages.language import target_scores

Say = Callable[[str], None]
SHARD = 256
VERSION = 1  # change it when the same weights and pairs would give other numbers
HOW_IT_RUNS = ("scan", "remat", "attention", "max_length")  # of the decoder's config: no matter to the numbers
ABOUT = "about.json"


def reference_log_probs(
    folder: str | Path,
    weights: str | Path,
    load: Callable[[], Decoder],
    pairs: Sequence[Pair],
    decoder: DecoderConfig,
    vocab: Vocab,
    *,
    tokens: int,
    data: str = "",
    say: Say = lambda text: None,
) -> list[np.ndarray]:
    """For every pair, float32 log-probabilities of the chosen and then of the rejected answer's ids.

    What ``folder`` lacks is computed by ``load()``, the model of the file ``weights``, about ``tokens`` ids at a time;
    an interrupted call loses at most a shard. ``data`` is a hash of the pairs, if one is known. Raises ``ValueError``
    if the folder is of other weights, of another configuration or of other pairs.
    """
    folder = Path(folder)
    _check_same(folder / ABOUT, _about(Path(weights), data or data_hash(pairs), decoder))
    shards = [folder / f"{k:05d}.npz" for k in range(-(-len(pairs) // SHARD))]
    missing = [k for k, path in enumerate(shards) if not path.exists()]
    model = load() if missing else None
    run = jax.jit(lambda model, batch: target_scores(model, batch)[0])
    for k in missing:
        chosen = pairs[k * SHARD : (k + 1) * SHARD]
        save_audio(shards[k], _float_bits(_shard(run, model, chosen, vocab, tokens)))
        say(f"[reference] {shards[k].name} of {len(shards)} shards of {SHARD} pairs")
    return [bits.view(np.float32) for path in shards for bits in load_audio(path)]


def _about(weights: Path, data: str, decoder: DecoderConfig) -> dict[str, Any]:
    meaning = {name: value for name, value in to_dict(decoder).items() if name not in HOW_IT_RUNS}
    return {"version": VERSION, "weights": hashes.digest(weights), "pairs": data, "decoder": meaning}


def _check_same(path: Path, about: dict[str, Any]) -> None:
    if not path.exists():
        write_json(path, about)
        return
    before = read_json(path)
    stale = [name for name in about if before.get(name) != about[name]]
    if stale:
        raise ValueError(
            f"{path}: log-probabilities of other {', '.join(stale)} than these; remove {path.parent} to get new ones"
        )


def _shard(run: Any, model: Any, pairs: Sequence[Pair], vocab: Vocab, tokens: int) -> list[np.ndarray]:
    lengths, widest = padded_lengths(pairs), widest_targets(pairs, vocab, tuple(KINDS))
    out: list[np.ndarray] = [np.zeros(0, np.float32)] * len(pairs)
    for length in np.unique(lengths).tolist():
        members, rows = np.flatnonzero(lengths == length).tolist(), max(1, tokens // length)
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            filled = chosen + chosen[-1:] * (rows - len(chosen))  # a batch of one shape
            unknown = [np.zeros(len(pairs[i].chosen) + len(pairs[i].rejected), np.float32) for i in filled]
            rows_of = [[(pairs[i], zeros)] for i, zeros in zip(filled, unknown, strict=True)]
            batch = pair_batch(rows_of, length, vocab, tuple(KINDS), targets=widest[length])
            log_probs = np.asarray(run(model, batch), np.float32)
            for row, i in enumerate(chosen):
                out[i] = log_probs[row, batch["loss_mask"][row] > 0]
    return out


def _float_bits(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The bits of float32 rows as int32, which is what ragged files hold."""
    return [np.ascontiguousarray(row, np.float32).view(np.int32) for row in rows]
