"""What the backward pass of a block finds saved, by name of a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_policies as policies

# Names that values are given with ``jax.ad_checkpoint.checkpoint_name``.
LAYER_INPUT = "layer_input"
RESIDUAL = "residual"  # the stream between attention and feed-forward layer
Q, K, V = "q", "k", "v"
ATTENTION_OUT = "attention_out"
ATTENTION_LSE = "attention_lse"
GATE, UP = "gate", "up"
EXPERT_IN = "expert_in"  # rows that came from other devices
EXPERT_GATE, EXPERT_UP = "expert_gate", "expert_up"

_ATTENTION = (ATTENTION_OUT, ATTENTION_LSE)
_QKVO = (Q, K, V, *_ATTENTION, RESIDUAL)
_EXPERTS = (EXPERT_IN, EXPERT_GATE, EXPERT_UP)


def _saved(*names: str) -> Any:
    return policies.save_only_these_names(*names)


def _offloaded(*names: str) -> Any:
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


# The input of a layer is kept always, on the device unless a policy moves it; what is not kept is computed again.
POLICIES: dict[str, Any] = {
    "none": None,  # no rematerialisation: everything is kept
    "full": policies.nothing_saveable,
    "save_attention": _saved(*_ATTENTION, RESIDUAL),
    "save_qkvo": _saved(*_QKVO),
    "save_products": _saved(*_QKVO, GATE, UP, *_EXPERTS),  # no product is computed again: norms and the like are
    "save_experts": _saved(*_QKVO, *_EXPERTS),  # rows do not travel again, nor are their products computed again
    "save_dots": policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, _saved(*_ATTENTION)),
    "offload_input": _offloaded(LAYER_INPUT),
    "offload_qkvo": _offloaded(LAYER_INPUT, *_QKVO),
}


def checkpointed(step: Callable[..., Any], policy: str, *, scanned: bool = True) -> Callable[..., Any]:
    """``step`` with its residuals chosen by the policy of that name; ``scanned`` if it is the body of a scan.

    ``offload_*`` keep what they name in the host's pinned memory. Raises ``ValueError`` for an unknown name.
    """
    if policy not in POLICIES:
        raise ValueError(f"remat policy {policy!r} is not known; expected one of {', '.join(POLICIES)}")
    if policy == "none":
        return step
    return jax.checkpoint(step, policy=POLICIES[policy], prevent_cse=not scanned)
