"""The only place that builds Optax chains."""

from __future__ import annotations

import fnmatch
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import jax
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.sharding.axes import EMBED, EXPERT_EMBED, EXPERTS, HEAD_DIM, HEADS, KV_HEADS, LAYERS, MLP
from aqaa_jax.sharding.partition import is_variable
from aqaa_jax.training.config import OptimizerConfig

Model = TypeVar("Model")
TRAINED, FROZEN = "trained", "frozen"
HIDDEN = frozenset({HEADS, KV_HEADS, HEAD_DIM, MLP})  # what a hidden matrix maps the model width to, or from
MU_DTYPES = ("", "float32", "bfloat16")
MUON_RMS = 0.2  # of an update at learning rate 1: that of AdamW, so that one learning rate serves both


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine decay to ``final_fraction`` of it at ``steps``."""
    warmup = min(config.warmup_steps, max(steps - 1, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.peak_lr, warmup, max(steps, warmup + 1), config.peak_lr * config.final_fraction
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon, after clipping; weight decay touches arrays of rank two and more, not scales and biases.

    Both moments have the dtype of the weights, float32 for training in mixed precision; ``mu_dtype`` is another one for
    the first. Frozen weights (``config.frozen``) have no state and no update, and are no part of the norm that is
    clipped. Raises ``ValueError`` for another ``config.kind`` or ``mu_dtype``; ``init`` does for a pattern of
    ``config.frozen`` that is the name of no weight.
    """
    rate = schedule(config, steps)
    if config.mu_dtype not in MU_DTYPES:
        raise ValueError(f"optimizer mu_dtype {config.mu_dtype!r} is none of {', '.join(MU_DTYPES[1:])}, or empty")
    mu_dtype = config.mu_dtype or None
    if config.kind == "adamw":
        rule = optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            mu_dtype=mu_dtype,
            weight_decay=config.weight_decay,
            mask=_matrices,
        )
    elif config.kind == "muon":
        rule = muon(
            rate,
            beta=config.muon_beta,
            mu_dtype=mu_dtype,
            weight_decay=config.weight_decay,
            weight_decay_mask=_matrices,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=muon_axes,
            consistent_rms=MUON_RMS,
        )
    else:
        raise ValueError(f"optimizer kind {config.kind!r} is none of adamw, muon")
    rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if not config.frozen:
        return rule
    kinds: dict[Hashable, optax.GradientTransformation] = {TRAINED: rule, FROZEN: optax.set_to_zero()}
    return optax.partition(kinds, lambda params: _chosen(params, config.frozen, FROZEN, TRAINED))


def held(new: Model, old: Model, frozen: Sequence[str]) -> Model:
    """``new`` with the frozen weights of ``old``, another tree of the same module."""
    if not frozen:
        return new
    return jax.tree.map(lambda is_old, a, b: b if is_old else a, _chosen(new, frozen, True, False), new, old)


def _chosen(model: Any, patterns: Sequence[str], yes: Any, no: Any) -> Any:
    """A tree like ``model`` with ``yes`` for weights whose name matches a pattern. Raises ``ValueError`` as above."""
    names = list(named_weights(model))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"frozen {pattern!r} matches no weight; the names are like {', '.join(names[:3])}")
    matched = iter([any(fnmatch.fnmatchcase(name, p) for p in patterns) for name in names])
    return jax.tree.map(lambda leaf: leaf.replace(yes if next(matched) else no), model, is_leaf=is_variable)


def muon_axes(params: Any) -> Any:
    """For each weight the two groups of axes that make it a matrix for Muon, or None: AdamW's.

    A hidden matrix maps the model width to heads or to the feed-forward width, or back, whatever its rank; leading
    ``LAYERS`` or ``EXPERTS`` axes are batches of matrices. Embeddings, heads, convolutions, scales and biases stay
    with AdamW, which has Nesterov momentum there (Jordan 2024, "Muon").
    """

    def one(variable: nnx.Variable) -> nnx.Variable:
        if not jax.tree.leaves(variable.get_value()):  # Optax's mark of a weight that another rule has
            return variable
        axes = variable.get_metadata()["axes"]
        width = [i for i, name in enumerate(axes) if name in (EMBED, EXPERT_EMBED)]
        rest = tuple(i for i, name in enumerate(axes) if i not in width and name not in (LAYERS, EXPERTS))
        hidden = len(width) == 1 and rest and all(axes[i] in HIDDEN for i in rest)
        return variable.replace(MuonDimensionNumbers(width[0], rest) if hidden else None)

    return jax.tree.map(one, params, is_leaf=is_variable)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, params)
