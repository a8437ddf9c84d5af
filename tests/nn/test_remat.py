"""Named rematerialisation policies: what each keeps, and that an unknown one is refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from aqaa_jax.nn.remat import ATTENTION_OUT, LAYER_INPUT, POLICIES, Q, checkpointed


def gradient(policy):
    """The jaxpr of the gradient of two products; the backward pass needs the result of both."""

    def chain(x):
        x = checkpoint_name(x, LAYER_INPUT)
        q = checkpoint_name(x @ jnp.ones((3, 3)), Q)
        return jnp.sum(jnp.sin(checkpoint_name(jnp.sin(q) @ jnp.ones((3, 3)), ATTENTION_OUT)))

    return str(jax.make_jaxpr(jax.grad(checkpointed(chain, policy)))(jnp.ones((1, 3))))


@pytest.mark.parametrize(
    "policy, again", [("none", 0), ("full", 2), ("save_attention", 1), ("save_qkvo", 0), ("save_dots", 0)]
)
def test_what_is_not_kept_is_computed_again(policy, again):
    assert gradient(policy).count("dot_general") == 4 + again
    assert "host" not in gradient(policy)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name.startswith("offload")])
def test_offloaded_values_go_to_the_host(policy):
    assert "host" in gradient(policy)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat policy 'some' is not known; expected one of none, full"):
        checkpointed(jnp.sin, "some")
