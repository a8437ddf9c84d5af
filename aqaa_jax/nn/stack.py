"""A stack of equal blocks: built with a leading layer axis, run with ``lax.scan``, or taken apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from aqaa_jax.nn.remat import checkpointed
from aqaa_jax.sharding.axes import LAYERS

Block = TypeVar("Block", bound=nnx.Module)


def stack(build: Callable[[nnx.Rngs], Block], layers: int, rngs: nnx.Rngs) -> Block:
    """``layers`` independent blocks as one module whose weights have a leading ``layers`` axis."""
    if layers < 1:
        raise ValueError(f"a stack has at least one layer, got {layers}")
    blocks = jax.vmap(lambda key: build(nnx.Rngs(key)))(jax.random.split(rngs(), layers))
    for leaf in jax.tree.leaves(blocks, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf.set_metadata(axes=(LAYERS, *leaf.get_metadata()["axes"]))
    return blocks


def changed(change: Callable[[Block], Block], blocks: Block) -> Block:
    """``change`` made to every block of a stack; it sees, and gives, the axes of a single block."""

    def without(leaf: nnx.Variable) -> nnx.Variable:
        return leaf.replace(leaf.get_value(), axes=leaf.get_metadata()["axes"][1:])

    is_weight = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    blocks = jax.vmap(change)(jax.tree.map(without, blocks, is_leaf=is_weight))
    for leaf in jax.tree.leaves(blocks, is_leaf=is_weight):
        leaf.set_metadata(axes=(LAYERS, *leaf.get_metadata()["axes"]))
    return blocks


def apart(blocks: nnx.Module, layers: int) -> nnx.List:
    """The blocks of a stack on their own, for inference; they take as much memory again.

    A scan copies every layer's weights out of the stack when it comes to it, on a CPU at least. Names of weights
    differ (``blocks.0.…``), so this form is not for checkpoints.
    """

    def layer(i: int) -> nnx.Module:
        def one(leaf: nnx.Variable) -> nnx.Variable:
            return leaf.replace(leaf.get_value()[i], axes=leaf.get_metadata()["axes"][1:])

        return jax.tree.map(one, blocks, is_leaf=lambda x: isinstance(x, nnx.Variable))

    return nnx.List([layer(i) for i in range(layers)])


def scan(
    step: Callable[[Any, Block, Any], tuple[Any, Any]],
    carry: Any,
    blocks: Block | nnx.List,
    xs: Any = None,
    *,
    remat: str = "none",
    unroll: int = 1,
) -> tuple[Any, Any]:
    """Run ``carry, y = step(carry, block, x)`` over the stack; ``xs`` and ``ys`` have a leading layer axis.

    Blocks that are ``apart`` are run one by one.

    ``remat`` is a policy of ``nn/remat.py``. ``unroll`` layers make one turn of the loop: what one layer sends over
    the network can then wait for the products of another.

    A ``step`` that constrains the sharding of its carry needs a carry constrained alike from the start: XLA's
    partitioner was seen to permute batch rows silently otherwise (jax 0.10.2, a mesh of 2 x 2 x 2).
    """
    if isinstance(blocks, nnx.List):
        return _one_by_one(checkpointed(step, remat, scanned=False), carry, blocks, xs)
    body = checkpointed(step, remat)
    return jax.lax.scan(lambda c, bx: body(c, bx[0], bx[1]), carry, (blocks, xs), unroll=unroll)


def _one_by_one(body: Callable, carry: Any, blocks: nnx.List, xs: Any) -> tuple[Any, Any]:
    ys = []
    for layer, block in enumerate(blocks):
        carry, y = body(carry, block, jax.tree.map(lambda x, i=layer: x[i], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)
