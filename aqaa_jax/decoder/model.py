"""Step1: the language model over text and audio tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from aqaa_jax.config import DecoderConfig
from aqaa_jax.decoder.block import Block
from aqaa_jax.kernels.context import zigzag_back, zigzag_order
from aqaa_jax.kernels.places import Places
from aqaa_jax.nn.alibi import segment_positions
from aqaa_jax.nn.attention import CacheSlots, places_of
from aqaa_jax.nn.int8 import Int8Weight
from aqaa_jax.nn.kv_cache import KVCache, empty_cache, new_slots
from aqaa_jax.nn.linear import Embedding
from aqaa_jax.nn.norm import RMSNorm
from aqaa_jax.nn.params import normal, weight
from aqaa_jax.nn.project import project
from aqaa_jax.nn.remat import LAYER_INPUT
from aqaa_jax.nn.stack import apart, changed, scan, stack
from aqaa_jax.sharding.axes import ACT_EMBED, ACT_LENGTH, ACT_VOCAB, BATCH, EMBED, LENGTH, VOCAB
from aqaa_jax.sharding.manual import gathered
from aqaa_jax.sharding.partition import constrain


class Decoder(nnx.Module):
    """Embedding, a scanned stack of blocks, final norm and an untied head (published ``modeling_step1.py``).

    Differences from the published module: padding and packing are respected (it ignores its attention
    mask, so only single unpadded prompts are right there); logits are float32.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = config
        self.embedding = Embedding(c.vocab, c.embed, rngs=rngs, dtype=c.param_dtype)
        self.blocks = stack(lambda r: Block(c, rngs=r), c.layers, rngs)
        self.norm = RMSNorm(c.embed, c.norm_eps, rngs=rngs, dtype=c.param_dtype)
        self.head = weight(rngs, (c.embed, c.vocab), (EMBED, VOCAB), normal(), c.param_dtype)
        self.config = c

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        *,
        positions_BL: Int[Array, "B L"] | None = None,
        segment_ids_BL: Int[Array, "B L"] | None = None,
        cache: KVCache | None = None,
    ) -> Any:
        """``logits_BLV``, or ``(logits_BLV, cache)`` if a cache is given; the arguments are those of ``hidden``."""
        out = self.hidden(tokens_BL, positions_BL=positions_BL, segment_ids_BL=segment_ids_BL, cache=cache)
        return self.logits(out) if cache is None else (self.logits(out[0]), out[1])

    def hidden(
        self,
        tokens_BL: Int[Array, "B L"],
        *,
        positions_BL: Int[Array, "B L"] | None = None,
        segment_ids_BL: Int[Array, "B L"] | None = None,
        cache: KVCache | None = None,
        with_aux: bool = False,
    ) -> Any:
        """The final normed states ``hidden_BLD``, or ``(hidden_BLD, cache)`` if a cache is given.

        ``with_aux``, without a cache: ``(hidden_BLD, stats)``, the ``ExpertStats`` of every layer, stacked; None
        where there are no experts.

        ``segment_ids_BL``: 0 is padding; without a cache, tokens of different numbers do not see one another
        (packing) and positions restart at every change. ``positions_BL`` overrides the positions.
        With a ``cache`` the tokens continue each row from ``cache.length_B``; there ``segment_ids_BL`` only tells
        real tokens (not 0) from padding, which must be on the right and is not stored; tokens beyond the
        capacity are lost (the caller's error). Raises ``ValueError`` if positions are given with a cache.
        """
        if cache is None:
            order_L = zigzag_order(tokens_BL.shape[1])
            places = self._places(tokens_BL, positions_BL, segment_ids_BL, order_L)
            x_BLD = self._embed(tokens_BL if order_L is None else tokens_BL[:, order_L])
            x_BLD, (_, stats) = self._blocks(x_BLD, places)
            hidden_BLD = self.norm(x_BLD) if order_L is None else zigzag_back(self.norm(x_BLD))
            return (hidden_BLD, stats) if with_aux else hidden_BLD
        if positions_BL is not None:
            raise ValueError("positions_BL cannot be given with a cache, which has its own")
        return self._continue(tokens_BL, segment_ids_BL, cache)

    def layer_inputs(
        self, tokens_BL: Int[Array, "B L"], *, segment_ids_BL: Int[Array, "B L"] | None = None
    ) -> Float[Array, "layers B L D"]:
        """The residual stream as each block receives it; entry 0 is the embedding. For analysis and parity."""
        places = self._places(tokens_BL, None, segment_ids_BL)
        return self._blocks(self._embed(tokens_BL), places, keep_inputs=True)[1][0]

    def logits(self, hidden_BLD: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """The head: float32 logits of normed states, of all positions or of chosen ones."""
        logits_BLV = project(hidden_BLD, self.head, out_dtype=jnp.float32)
        return constrain(logits_BLV, BATCH, LENGTH, ACT_VOCAB)

    def empty_cache(self, batch: int, capacity: int) -> KVCache:
        """A cache for ``batch`` rows of up to ``capacity`` tokens, in the activation dtype."""
        c = self.config
        return empty_cache(c.layers, batch, capacity, c.kv_heads, c.head_dim, jnp.dtype(c.dtype))

    def unrolled(self) -> Decoder:
        """The same model with its layers held apart, for inference; it takes as much memory again.

        On a CPU, where one token costs little more than reading the weights, decoding is several times faster without
        the copies that a scan makes (``nn.stack.apart``). Names of weights differ: not for checkpoints.
        """
        copy = jax.tree.map(lambda x: x, self)
        copy.blocks = apart(self.blocks, self.config.layers)
        return copy

    def int8(self, *, apart: bool = True) -> Decoder:
        """The same model with all but its embedding and norms in int8 (``nn/int8.py``); for inference.

        Layers stand ``apart`` (as in ``unrolled``), or stay a stack, which compiles faster when they are many.
        Raises ``ValueError`` for a model with experts.
        """
        if self.config.experts is not None:
            raise ValueError("int8 weights: expected a dense decoder, got one with experts")
        copy = self.unrolled() if apart else jax.tree.map(lambda x: x, self)
        if apart:
            copy.blocks = nnx.List([_int8(block) for block in copy.blocks])
        else:
            copy.blocks = changed(_int8, copy.blocks)
        copy.head = Int8Weight(copy.head, 1)
        return copy

    def _embed(self, tokens_BL: jax.Array) -> jax.Array:
        table_VD = gathered(self.embedding.table, self.config.dtype)
        x_BLD = jnp.take(table_VD, tokens_BL, axis=0, mode="clip").astype(self.config.dtype)
        return constrain(x_BLD, BATCH, ACT_LENGTH, ACT_EMBED)

    def _places(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None,
        segment_ids_BL: jax.Array | None,
        order_L: Any = None,
    ) -> Places:
        if positions_BL is None:
            one_row_1L = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
            positions_BL = one_row_1L if segment_ids_BL is None else segment_positions(segment_ids_BL)
        if order_L is not None:
            positions_BL = positions_BL[:, order_L]
            segment_ids_BL = None if segment_ids_BL is None else segment_ids_BL[:, order_L]
        return places_of(self.config.attention, positions_BL, positions_BL, segment_ids_BL, segment_ids_BL)

    def _over_layers(self, step: Any, carry: Any, remat: str = "none") -> tuple[Any, Any]:
        """``carry, y = step(carry, block, layer)`` over the layers, scanned or one by one."""
        stacked = self.config.scan or isinstance(self.blocks, nnx.List)
        blocks = self.blocks if stacked else apart(self.blocks, self.config.layers)
        layers_X = np.arange(self.config.layers, dtype=np.int32)
        return scan(step, carry, blocks, layers_X, remat=remat, unroll=self.config.unroll)

    def _blocks(self, x_BLD: jax.Array, places: Places, keep_inputs: bool = False) -> tuple[Any, Any]:
        """The last states and, of every layer, its input (None if not kept) and its ``ExpertStats`` (None if dense)."""

        def step(x_BLD, block, _):
            x_BLD = checkpoint_name(x_BLD, LAYER_INPUT)
            out_BLD, _, stats = block(x_BLD, places)
            return out_BLD, (x_BLD if keep_inputs else None, stats)

        return self._over_layers(step, x_BLD, remat=self.config.remat)

    def _continue(self, tokens_BL: jax.Array, segment_ids_BL: jax.Array | None, cache: KVCache) -> tuple[Any, KVCache]:
        L, capacity = tokens_BL.shape[1], cache.k.shape[3]
        real_BL = None if segment_ids_BL is None else segment_ids_BL != 0
        slots_BL = new_slots(cache.length_B, real_BL, L, capacity)
        positions_BL = cache.length_B[:, None] + jnp.arange(L, dtype=jnp.int32)
        places = places_of(self.config.attention, positions_BL, jnp.arange(capacity, dtype=jnp.int32)[None])

        def step(carry, block, layer):
            x_BLD, k, v = carry
            x_BLD, after, _ = block(x_BLD, places, CacheSlots(k, v, layer, slots_BL))
            return (x_BLD, after.k, after.v), None

        carry = (self._embed(tokens_BL), cache.k, cache.v)
        (x_BLD, k, v), _ = self._over_layers(step, carry)
        added_B = L if real_BL is None else jnp.sum(real_BL, axis=1, dtype=jnp.int32)
        return self.norm(x_BLD), KVCache(k, v, cache.length_B + added_B)


def _int8(block: Block) -> Block:
    for part, names, in_axes in (
        (block.attention, ("wq", "wk", "wv"), 1),
        (block.attention, ("wo",), 2),
        (block.mlp, ("gate", "up", "down"), 1),
    ):
        for name in names:
            setattr(part, name, Int8Weight(getattr(part, name), in_axes))
    return block
