"""Masked sums, cross-entropy and DPO at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.losses.cross_entropy import cross_entropy, target_log_probs, token_log_probs
from aqaa_jax.losses.dpo import answer_log_ratios, dpo, masked_log_ratio, preference
from aqaa_jax.losses.masked import masked_sum_count, mean


def test_masked_sum_ignores_what_is_left_out():
    values = jnp.asarray([1.0, jnp.nan, 3.0, jnp.inf])
    total, count = masked_sum_count(values, jnp.asarray([1.0, 0.0, 0.5, 0.0]))
    assert total == 2.5 and count == 1.5
    with pytest.raises(ValueError, match="shape"):
        masked_sum_count(jnp.ones((2, 3)), jnp.ones((2, 1)))


def test_mean_of_nothing_is_zero_without_gradient():
    value, grad = jax.value_and_grad(lambda x: mean(*masked_sum_count(x, jnp.zeros(3))))(jnp.ones(3))
    assert value == 0 and not np.asarray(grad).any()


def test_cross_entropy_adds_up_and_is_float32():
    logits = jax.random.normal(jax.random.key(0), (4, 5, 7))
    targets = jax.random.randint(jax.random.key(1), (4, 5), 0, 7)
    mask = jnp.arange(20).reshape(4, 5) % 3 > 0
    whole = cross_entropy(logits, targets, mask)
    parts = [cross_entropy(logits[i : i + 2], targets[i : i + 2], mask[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
    expected = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(whole[0], expected[mask].sum(), rtol=1e-6)
    assert cross_entropy(logits.astype(jnp.bfloat16), targets, mask)[0].dtype == jnp.float32


def test_masked_targets_have_no_gradient_whatever_they_are():
    logits = jax.random.normal(jax.random.key(0), (1, 3, 5))
    targets = jnp.asarray([[2, -100, 99]])
    mask = jnp.asarray([[1, 0, 0]])
    grad = jax.grad(lambda x: cross_entropy(x, targets, mask)[0])(logits)
    assert np.isfinite(grad).all() and not np.asarray(grad[:, 1:]).any() and np.asarray(grad[:, 0]).any()


def test_cross_entropy_survives_large_logits():
    logits = jnp.asarray([[[1e4, -1e4, 0.0]]])
    assert token_log_probs(logits, jnp.asarray([[0]])) == 0
    assert np.isfinite(token_log_probs(logits, jnp.asarray([[1]]))).all()


def test_dpo_at_the_reference_is_log_two():
    logps = -jax.random.uniform(jax.random.key(0), (3, 4))
    other = -jax.random.uniform(jax.random.key(1), (3, 6))
    out = dpo(logps, other, logps, other, jnp.ones((3, 4)), jnp.ones((3, 6)))
    np.testing.assert_allclose(out.losses_B, np.log(2), rtol=1e-6)
    assert not np.asarray(out.chosen_rewards_B).any()


def test_dpo_prefers_the_chosen_and_sees_only_its_mask():
    zero, mask = jnp.zeros((1, 3)), jnp.asarray([[1, 0, 1]])

    def loss(chosen, rejected):
        return dpo(chosen, rejected, zero, zero, mask, mask, beta=0.5).losses_B[0]

    chosen_grad, rejected_grad = jax.grad(loss, argnums=(0, 1))(zero, zero)
    np.testing.assert_allclose(chosen_grad, [[-0.25, 0, -0.25]])
    np.testing.assert_allclose(rejected_grad, [[0.25, 0, 0.25]])
    reference = jax.grad(lambda r: jnp.sum(dpo(zero, zero, r, r, mask, mask).losses_B))(zero)
    assert not np.asarray(reference).any()
    with pytest.raises(ValueError, match="beta"):
        dpo(zero, zero, zero, zero, mask, mask, beta=0.0)


def whole(hidden, head, targets):
    return token_log_probs(hidden @ head, targets)


@pytest.mark.parametrize("chunk", [0, 4, 5, 19, 30])
def test_log_probs_by_chunks_are_those_of_all_logits_gradients_too(chunk):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (3, 19, 16)), jax.random.normal(keys[1], (16, 40))
    targets, weigh = jax.random.randint(keys[2], (3, 19), 0, 60), jax.random.normal(keys[3], (3, 19))

    def chunked(hidden, head):
        return target_log_probs(hidden, head, targets, chunk=chunk)[0]

    np.testing.assert_allclose(chunked(hidden, head), whole(hidden, head, targets), rtol=1e-6, atol=1e-6)
    right = target_log_probs(hidden, head, targets, chunk=chunk)[1]
    np.testing.assert_array_equal(right, jnp.argmax(hidden @ head, axis=-1) == jnp.clip(targets, 0, 39))
    ours, theirs = (
        jax.grad(lambda *x, fn=fn: jnp.sum(weigh * fn(*x)), argnums=(0, 1))(hidden, head)
        for fn in (chunked, lambda hidden, head: whole(hidden, head, targets))
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_chunks_keep_the_logits_out_of_memory():
    B, L, D, V = 2, 512, 8, 4096

    def temporaries(chunk):
        loss = lambda hidden, head, targets: jnp.sum(target_log_probs(hidden, head, targets, chunk=chunk)[0])  # noqa: E731
        shapes = [((B, L, D), jnp.float32), ((D, V), jnp.float32), ((B, L), jnp.int32)]
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits = 4 * B * L * V
    assert temporaries(0) > logits
    assert temporaries(16) < logits / 4


def test_a_negative_chunk_is_refused():
    with pytest.raises(ValueError, match="chunk is -1"):
        target_log_probs(jnp.ones((1, 2, 3)), jnp.ones((3, 4)), jnp.zeros((1, 2), jnp.int32), chunk=-1)


def test_ipo_and_length_normalised_dpo_match_their_formulas():
    rng = np.random.default_rng(0)
    policy, other, reference, theirs = (rng.normal(size=(3, 7)).astype(np.float32) for _ in range(4))
    mask, rejected_mask = rng.random((3, 7)) < 0.6, rng.random((3, 7)) < 0.6
    beta = 0.3
    for normalised in (False, True):

        def ratio(p, r, m, n=normalised):
            total = np.sum((p - r) * m, axis=1, dtype=np.float64)
            return total / m.sum(axis=1) if n else total

        margin = ratio(policy, reference, mask) - ratio(other, theirs, rejected_mask)
        expected = {"ipo": (margin - 1 / (2 * beta)) ** 2, "sigmoid": np.log1p(np.exp(-beta * margin))}
        slope = {"ipo": 2 * (margin - 1 / (2 * beta)), "sigmoid": -beta / (1 + np.exp(beta * margin))}
        for kind in ("ipo", "sigmoid"):

            def losses(x, k=kind, n=normalised):
                arguments = (x, other, reference, theirs, mask, rejected_mask)
                return dpo(*arguments, beta=beta, kind=k, length_normalised=n).losses_B

            np.testing.assert_allclose(losses(policy), expected[kind], rtol=1e-5)
            share = mask / mask.sum(axis=1, keepdims=True) if normalised else mask
            grad = jax.grad(lambda x, f=losses: jnp.sum(f(x)))(jnp.asarray(policy))
            np.testing.assert_allclose(grad, slope[kind][:, None] * share, rtol=1e-5, atol=1e-7)


def test_answers_packed_in_a_row_have_the_ratios_they_have_alone():
    rng = np.random.default_rng(1)
    policy, reference = rng.normal(size=(2, 1, 12)).astype(np.float32)
    answer = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 0, 0]])
    mask = np.array([[1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]])
    packed = answer_log_ratios(policy, reference, mask, answer, 4)
    for k in range(4):
        alone = masked_log_ratio(*(x[:, answer[0] == k + 1] for x in (policy, reference, mask)))
        np.testing.assert_allclose(packed[:, k], alone, rtol=1e-6)
    assert packed[0, 2] == 0  # an answer without a counted token
    assert answer_log_ratios(policy, reference, mask, answer, 4, length_normalised=True)[0, 2] == 0


def test_senseless_preference_settings_are_refused():
    zero = jnp.zeros(1)
    for wrong, message in (
        ({"beta": 0.0}, "beta 0.0 must be positive"),
        ({"label_smoothing": 0.5}, "label_smoothing 0.5 in"),
        ({"kind": "hinge"}, "'hinge' is none of sigmoid, ipo"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "expected 0 with the loss 'ipo'"),
    ):
        with pytest.raises(ValueError, match=message):
            preference(zero, zero, **wrong)
