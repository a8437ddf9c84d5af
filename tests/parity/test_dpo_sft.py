"""DPO against TRL and cross-entropy against transformers, text-only masks included."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.losses.cross_entropy import cross_entropy, token_log_probs
from aqaa_jax.losses.dpo import dpo, masked_log_ratio
from aqaa_jax.losses.masked import mean

pytestmark = pytest.mark.parity
NAMES = ("all", "text")


@pytest.fixture(scope="module")
def config(golden):
    return json.loads(golden("dpo_sft/config.json").read_text())


@pytest.fixture(scope="module")
def data(golden):
    return golden("dpo_sft/dpo.npz")


@pytest.fixture(scope="module")
def sft(golden):
    return golden("dpo_sft/sft.npz")


def aligned(logits, ids):
    """log p of the token at each place given those before it; 0 at place 0."""
    return jnp.pad(token_log_probs(logits[:, :-1], ids[:, 1:]), ((0, 0), (1, 0)))


def run(data, policy_logits, name, beta, smoothing):
    B = len(data["prompt_lengths"])
    ids, mask = data["input_ids"], data[f"mask_{name}"]
    policy, reference = aligned(policy_logits, ids), aligned(data["ref_logits"], ids)
    return dpo(
        policy[:B], policy[B:], reference[:B], reference[B:], mask[:B], mask[B:], beta=beta, label_smoothing=smoothing
    )


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_the_stated_ones(data, config, name):
    places = np.arange(data["input_ids"].shape[1])[None]
    start = np.tile(data["prompt_lengths"], 2)[:, None]
    stop = start + data["response_lengths"][:, None]
    response = (places >= start) & (places < stop)
    np.testing.assert_array_equal(data["attention_mask"], places < stop)
    text = response & (data["input_ids"] < config["audio_token_start"])
    np.testing.assert_array_equal(data[f"mask_{name}"], response if name == "all" else text)


@pytest.mark.parametrize("name", NAMES)
def test_log_probs(data, name):
    mask = data[f"mask_{name}"]
    zero = jnp.zeros(mask.shape)
    for model, key in (("policy", "policy_logits"), ("ref", "ref_logits")):
        ours = aligned(data[key], data["input_ids"])
        expected = data[f"per_token_logps_{model}_{name}"]
        np.testing.assert_allclose(np.where(mask, ours, 0), expected, rtol=1e-6, atol=1e-6)
        sums = masked_log_ratio(ours, zero, mask)
        np.testing.assert_allclose(sums, data[f"logps_{model}_{name}"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_dpo(data, config, name):
    cases = [k.removeprefix(f"losses_{name}_") for k in data if k.startswith(f"losses_{name}_")]
    assert cases
    for case in cases:
        beta, smoothing = (float(part.lstrip("betals")) for part in case.split("_"))
        out = run(data, data["policy_logits"], name, beta, smoothing)
        np.testing.assert_allclose(out.losses_B, data[f"losses_{name}_{case}"], rtol=1e-5)
        np.testing.assert_allclose(jnp.mean(out.losses_B), data[f"loss_mean_{name}_{case}"], rtol=1e-5)
        for ours, key in ((out.chosen_rewards_B, "chosen"), (out.rejected_rewards_B, "rejected")):
            np.testing.assert_allclose(ours, data[f"{key}_rewards_{name}_{case}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_dpo_gradient(data, name):
    keys = [k for k in data if k.startswith(f"grad_policy_logits_{name}_")]
    assert keys
    for key in keys:
        beta, smoothing = (float(part.lstrip("betals")) for part in key.split("_")[-2:])
        grad = jax.grad(lambda logits, b=beta, s=smoothing: jnp.mean(run(data, logits, name, b, s).losses_B))
        ours = grad(jnp.asarray(data["policy_logits"]))
        np.testing.assert_allclose(ours, data[key], atol=1e-7, rtol=1e-5)


def test_pairs_without_text(data, config):
    B = len(data["prompt_lengths"])
    silent = [pair["row"] for pair in config["pairs"] if pair["text_targets"] == [0, 0]]
    assert silent
    beta = config["betas"][0]
    out = run(data, data["policy_logits"], "text", beta, 0.0)
    grad = jax.grad(lambda logits: jnp.mean(run(data, logits, "text", beta, 0.0).losses_B))
    grad = grad(jnp.asarray(data["policy_logits"]))
    for row in silent:
        np.testing.assert_allclose(out.losses_B[row], np.log(2), rtol=1e-6)
        assert not np.asarray(grad[row]).any() and not np.asarray(grad[B + row]).any()


@pytest.mark.parametrize("name", ["response", "response_text"])
def test_sft(sft, name):
    logits, labels = sft["logits"], sft[f"labels_{name}"][:, 1:]
    mask = labels >= 0

    def loss(logits):
        return mean(*cross_entropy(logits[:, :-1], labels, mask))

    nll = np.where(mask, -token_log_probs(jnp.asarray(logits[:, :-1]), labels), 0)
    np.testing.assert_allclose(nll, sft[f"nll_{name}"], rtol=1e-5, atol=1e-6)
    total, count = cross_entropy(jnp.asarray(logits[:, :-1]), labels, mask)
    assert count == sft[f"n_targets_{name}"]
    np.testing.assert_allclose(total / 50, sft[f"loss_hf_num_items_50_{name}"], rtol=1e-5)
    value, grad = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, sft[f"loss_fp64_{name}"], rtol=1e-5)
    np.testing.assert_allclose(value, sft[f"loss_hf_{name}"], rtol=1e-5)
    np.testing.assert_allclose(grad, sft[f"grad_logits_{name}"], atol=1e-7, rtol=1e-5)


def test_sft_without_targets(sft):
    """The published loss is NaN there; ours is 0 without a gradient, a stated difference."""
    assert np.isnan(sft["loss_hf_no_targets"])
    ids = sft["input_ids"]
    none = np.zeros(ids.shape, bool)
    value, grad = jax.value_and_grad(lambda x: mean(*cross_entropy(x, ids, none)))(jnp.asarray(sft["logits"]))
    assert value == 0 and not np.asarray(grad).any()
