"""Prompts in, generated ids out: one prefill, then a decoding loop on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from aqaa_jax.config import SamplingConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.inference.sampling import NO_TOKEN, check_sampling, sample
from aqaa_jax.nn.kv_cache import KVCache

PREFILL_CHUNK = 512  # prompt tokens per attention call: bounds the memory of its logits
SMALLEST_BUCKET = 32

# (initial state, step): ``step(state, token) -> (state, allowed_V)`` for one row, traced. It is called with
# ``NO_TOKEN`` before the first token and must be the same function object at every call (it is compiled in).
Constraint = tuple[Any, Callable[[Any, jax.Array], tuple[Any, jax.Array]]]


class Generation(NamedTuple):
    """The generated ids of one prompt (int32, without the stop id) and the stop id, ``None`` at the length limit."""

    ids: np.ndarray
    stop_id: int | None

    @property
    def stopped(self) -> bool:
        """Whether a stop id ended it, and not the length limit."""
        return self.stop_id is not None


class _Rows(NamedTuple):
    """State of the decoding loop. ``logits_BV`` are those of the next token."""

    step: Int[Array, ""]
    cache: KVCache
    logits_BV: Float[Array, "B V"]
    ids_BL: Int[Array, "B L"]
    count_B: Int[Array, "B"]
    stop_B: Int[Array, "B"]  # the stop id, or NO_TOKEN
    done_B: Bool[Array, "B"]
    recent_BW: Any  # the last ids of each row for the repetition rule, or None
    constraint: Any  # (state, allowed_BV), or None


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int] | np.ndarray],
    sampling: SamplingConfig,
    *,
    stop_ids: Sequence[int],
    key: Key[Array, ""],
    max_new_tokens: int | None = None,
    constraint: Constraint | None = None,
) -> list[Generation]:
    """Continue every prompt until a stop id or ``max_new_tokens`` (default: that of ``sampling``).

    Prompts may differ in length; a row's result does not depend on its neighbours, and sampled rows
    draw from ``fold_in(key, row)``. Lengths and batch are rounded up to buckets, so that few shapes are
    compiled. Prompt and answer together stay within ``decoder.config.max_length``.
    Raises ``ValueError`` on an empty or too long prompt, an id outside the vocabulary or a senseless setting.
    """
    limit = sampling.max_new_tokens if max_new_tokens is None else max_new_tokens
    sampling = replace(sampling, max_new_tokens=limit)
    check_sampling(sampling)
    rows = [_checked(prompt, index, decoder) for index, prompt in enumerate(prompts)]
    if not rows:
        return []
    B, L = _power_of_two(len(rows)), bucket(max(len(row) for row in rows))
    limits = [min(limit, decoder.config.max_length - len(row)) for row in rows]
    steps = bucket(max(limits))
    tokens_BL, recent_BW = np.zeros((B, L), np.int32), np.full((B, sampling.repetition_window), NO_TOKEN, np.int32)
    lengths_B, limits_B = np.ones(B, np.int32), np.zeros(B, np.int32)  # rows of the batch bucket do nothing
    for i, row in enumerate(rows):
        tokens_BL[i, : len(row)], lengths_B[i], limits_B[i] = row, len(row), limits[i]
        last = row[max(0, len(row) - recent_BW.shape[1]) :] if recent_BW.shape[1] else row[:0]
        recent_BW[i, recent_BW.shape[1] - len(last) :] = last
    init, step = (None, None) if constraint is None else constraint
    out = _generate(
        decoder,
        tokens_BL,
        lengths_B,
        limits_B,
        recent_BW,
        key,
        init,
        sampling=replace(sampling, max_new_tokens=1),  # only the limits hold it: no new program per limit
        stop_ids=tuple(int(i) for i in stop_ids),
        steps=steps,
        constrain_step=step,
    )
    ids_BL, count_B, stop_B = jax.device_get(out)
    return [
        Generation(ids_BL[i, : count_B[i]], None if stop_B[i] == NO_TOKEN else int(stop_B[i])) for i in range(len(rows))
    ]


def bucket(length: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, ... from ``length`` up: at most half as much again."""
    size = max(SMALLEST_BUCKET, _power_of_two(length))
    return size // 4 * 3 if size > SMALLEST_BUCKET and length <= size // 4 * 3 else size


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _checked(prompt: Sequence[int] | np.ndarray, index: int, decoder: Decoder) -> np.ndarray:
    ids, c = np.asarray(prompt), decoder.config
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"prompt {index} has shape {ids.shape}; expected a sequence of at least one id")
    if len(ids) >= c.max_length:
        raise ValueError(f"prompt {index} has {len(ids)} ids; the decoder holds {c.max_length} with the answer")
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= c.vocab:
        raise ValueError(f"prompt {index} has ids outside the vocabulary of {c.vocab}")
    return ids.astype(np.int32)


@partial(jax.jit, static_argnames=("sampling", "stop_ids", "steps", "constrain_step"))
def _generate(
    decoder: Decoder,
    tokens_BL: jax.Array,
    lengths_B: jax.Array,
    limits_B: jax.Array,
    recent_BW: jax.Array,
    key: jax.Array,
    constraint_init: Any,
    *,
    sampling: SamplingConfig,
    stop_ids: tuple[int, ...],
    steps: int,
    constrain_step: Callable[[Any, jax.Array], tuple[Any, jax.Array]] | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(ids_BL, count_B, stop_B)``."""
    B, L = tokens_BL.shape
    keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(B))
    logits_BV, cache = _prefill(decoder, tokens_BL, lengths_B, decoder.empty_cache(B, L + steps))
    constraint = None
    if constrain_step is not None:
        state = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (B, *jnp.shape(x))), constraint_init)
        constraint = jax.vmap(constrain_step)(state, jnp.full((B,), NO_TOKEN, jnp.int32))

    def body(rows: _Rows) -> _Rows:
        row_keys_B = jax.vmap(lambda k: jax.random.fold_in(k, rows.step))(keys_B)
        allowed_BV = None if rows.constraint is None else rows.constraint[1]
        token_B = sample(rows.logits_BV, row_keys_B, sampling, recent_BW=rows.recent_BW, allowed_BV=allowed_BV)
        return _advance(rows, token_B, decoder, limits_B, jnp.asarray(stop_ids, jnp.int32), constrain_step)

    rows = _Rows(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        logits_BV=logits_BV,
        ids_BL=jnp.zeros((B, steps), jnp.int32),
        count_B=jnp.zeros((B,), jnp.int32),
        stop_B=jnp.full((B,), NO_TOKEN, jnp.int32),
        done_B=limits_B <= 0,
        recent_BW=recent_BW if sampling.repetition_window else None,
        constraint=constraint,
    )
    rows = jax.lax.while_loop(lambda rows: ~jnp.all(rows.done_B), body, rows)
    return rows.ids_BL, rows.count_B, rows.stop_B


def _advance(
    rows: _Rows,
    token_B: jax.Array,
    decoder: Decoder,
    limits_B: jax.Array,
    stop_ids: jax.Array,
    constrain_step: Callable[[Any, jax.Array], tuple[Any, jax.Array]] | None,
) -> _Rows:
    """Record the chosen tokens and compute the next logits; rows that are done stay as they are."""
    stops_B = ~rows.done_B & jnp.isin(token_B, stop_ids)
    adds_B = ~rows.done_B & ~stops_B
    count_B = rows.count_B + adds_B
    done_B = rows.done_B | stops_B | (count_B >= limits_B)
    real_BL = (~done_B)[:, None].astype(jnp.int32)
    logits_BLV, cache = decoder(token_B[:, None], segment_ids_BL=real_BL, cache=rows.cache)
    recent_BW, constraint = rows.recent_BW, rows.constraint
    if recent_BW is not None:
        recent_BW = jnp.concatenate([recent_BW[:, 1:], token_B[:, None]], axis=1)
    if constrain_step is not None:
        constraint = jax.vmap(constrain_step)(constraint[0], token_B)
    return _Rows(
        step=rows.step + 1,
        cache=cache,
        logits_BV=logits_BLV[:, 0],
        ids_BL=rows.ids_BL.at[:, rows.step].set(jnp.where(adds_B, token_B, 0)),
        count_B=count_B,
        stop_B=jnp.where(stops_B, token_B, rows.stop_B),
        done_B=done_B,
        recent_BW=recent_BW,
        constraint=constraint,
    )


def _prefill(decoder: Decoder, tokens_BL: jax.Array, lengths_B: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """The logits after each row's last prompt token, and the cache of all prompts; in chunks of the length."""
    B, L = tokens_BL.shape
    chunk = min(L, PREFILL_CHUNK)
    pad = -L % chunk
    tokens_PBL = jnp.pad(tokens_BL, ((0, 0), (0, pad))).reshape(B, -1, chunk).swapaxes(0, 1)
    starts_P = jnp.arange(len(tokens_PBL), dtype=jnp.int32) * chunk

    def step(carry, xs):
        last_BD, cache = carry
        tokens_BL, start = xs
        places_BL = start + jnp.arange(chunk, dtype=jnp.int32)[None]
        real_BL = (places_BL < lengths_B[:, None]).astype(jnp.int32)
        hidden_BLD, cache = decoder.hidden(tokens_BL, segment_ids_BL=real_BL, cache=cache)
        place_B = lengths_B - 1 - start
        found_BD = jnp.take_along_axis(hidden_BLD, jnp.clip(place_B, 0, chunk - 1)[:, None, None], axis=1)[:, 0]
        here_B1 = ((place_B >= 0) & (place_B < chunk))[:, None]
        return (jnp.where(here_B1, found_BD, last_BD), cache), None

    last_BD = jnp.zeros((B, decoder.config.embed), jnp.dtype(decoder.config.dtype))
    (last_BD, cache), _ = jax.lax.scan(step, (last_BD, cache), (tokens_PBL, starts_P))
    return decoder.logits(last_BD[:, None])[:, 0], cache
