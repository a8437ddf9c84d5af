"""The only place that builds Optax chains."""

from __future__ import annotations

from typing import Any

import jax
import optax

from aqaa_jax.training.config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine decay to ``final_fraction`` of it at ``steps``."""
    warmup = min(config.warmup_steps, max(steps - 1, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.peak_lr, warmup, max(steps, warmup + 1), config.peak_lr * config.final_fraction
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW; weight decay touches arrays of rank two and more, not scales and biases."""

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim >= 2, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=matrices,
        ),
    )
