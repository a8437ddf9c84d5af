"""Generation: batched equals one by one, stops, constraints, seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.config import DecoderConfig, SamplingConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.inference import generate as module
from aqaa_jax.inference.generate import bucket, generate
from aqaa_jax.inference.sampling import NO_TOKEN

CONFIG = DecoderConfig(
    vocab=24,
    embed=16,
    mlp=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    layers=2,
    max_length=60,
    dtype="float32",
    param_dtype="float32",
)
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=12)
WARM = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=12)
KEY = jax.random.key(5)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [3, 1]]


@pytest.fixture(scope="module")
def decoder():
    return jax.tree.map(lambda w: 6 * w, Decoder(CONFIG, rngs=nnx.Rngs(0)))


def by_hand(decoder, prompt, count):
    ids = list(prompt)
    forward = jax.jit(lambda m, t: m(t))
    for _ in range(count):
        padded = jnp.asarray([ids + [0] * (32 - len(ids))])  # causal: what follows does not matter
        ids.append(int(jnp.argmax(forward(decoder, padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def test_greedy_batch_is_the_plain_loop(decoder):
    together = generate(decoder, PROMPTS, GREEDY, stop_ids=(), key=KEY)
    for prompt, out in zip(PROMPTS, together, strict=True):
        assert out.ids.tolist() == by_hand(decoder, prompt, 12)
        assert out.stop_id is None and not out.stopped
    alone = generate(decoder, PROMPTS[2:3], GREEDY, stop_ids=(), key=jax.random.key(1))
    np.testing.assert_array_equal(alone[0].ids, together[2].ids)
    apart = generate(decoder.unrolled(), PROMPTS, GREEDY, stop_ids=(), key=KEY)
    assert [o.ids.tolist() for o in apart] == [o.ids.tolist() for o in together]


def test_stops_and_limits(decoder):
    free = generate(decoder, PROMPTS, GREEDY, stop_ids=(), key=KEY)
    stop = int(free[0].ids[4])
    outs = generate(decoder, PROMPTS, GREEDY, stop_ids=(stop, 23), key=KEY)
    for out, full in zip(outs, free, strict=True):
        ends = np.isin(full.ids, (stop, 23))
        at = int(ends.argmax()) if ends.any() else len(full.ids)
        np.testing.assert_array_equal(out.ids, full.ids[:at])
        assert out.stop_id == (int(full.ids[at]) if ends.any() else None)
    assert outs[0].stopped
    short = generate(decoder, PROMPTS, GREEDY, stop_ids=(), key=KEY, max_new_tokens=5)
    assert [o.ids.tolist() for o in short] == [o.ids[:5].tolist() for o in free]


def test_the_decoder_length_is_a_limit(decoder):
    prompt = [1] * (CONFIG.max_length - 3)
    outs = generate(decoder, [prompt, [1]], GREEDY, stop_ids=(), key=KEY)
    assert [len(o.ids) for o in outs] == [3, 12]


def test_same_seed_same_tokens(decoder):
    def run(key, prompts=PROMPTS):
        return [o.ids.tolist() for o in generate(decoder, prompts, WARM, stop_ids=(23,), key=key)]

    first = run(KEY)
    assert first == run(KEY)
    assert first != run(jax.random.key(6))
    assert run(KEY, PROMPTS[:1]) == first[:1]


def test_prefill_in_chunks(decoder, monkeypatch):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, CONFIG.vocab, n).tolist() for n in (31, 17, 16, 1)]
    whole = generate(decoder, prompts, GREEDY, stop_ids=(), key=KEY)
    jax.clear_caches()
    monkeypatch.setattr(module, "PREFILL_CHUNK", 12)
    chunks = generate(decoder, prompts, GREEDY, stop_ids=(), key=KEY)
    jax.clear_caches()
    assert [o.ids.tolist() for o in chunks] == [o.ids.tolist() for o in whole]


def test_constraint_is_obeyed(decoder):
    """Ids cycle through three classes, by id modulo 3, whatever the model prefers."""

    def step(state, token):
        state = jnp.where(token == NO_TOKEN, state, (state + 1) % 3)
        return state, jnp.arange(CONFIG.vocab) % 3 == state

    for sampling in (GREEDY, WARM):
        outs = generate(decoder, PROMPTS, sampling, stop_ids=(), key=KEY, constraint=(jnp.int32(1), step))
        for out in outs:
            np.testing.assert_array_equal(out.ids % 3, (np.arange(12) + 1) % 3)


def test_repetition_rule_counts_the_prompt(decoder):
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=12, repetition_window=4, repetition_threshold=0.25)
    outs = generate(decoder, PROMPTS, sampling, stop_ids=(), key=KEY)
    for prompt, out in zip(PROMPTS, outs, strict=True):
        ids = [*prompt, *out.ids.tolist()]
        for end in range(max(len(prompt), 4), len(ids)):
            window = ids[end - 4 : end]
            if window.count(window[-1]) > 1:
                assert ids[end] != window[-1]


def test_buckets():
    sizes = [bucket(n) for n in range(1, 3000)]
    assert sizes == sorted(sizes) and len(set(sizes)) < 16
    assert all(n <= size <= max(32, n * 1.5) for n, size in enumerate(sizes, 1))


@pytest.mark.parametrize(
    ("prompt", "match"), [([], "at least one id"), ([99], "outside"), ([1] * 60, "60 ids"), ([0.5], "outside")]
)
def test_bad_prompts(decoder, prompt, match):
    with pytest.raises(ValueError, match=match):
        generate(decoder, [[1], prompt], GREEDY, stop_ids=(), key=KEY)
    assert generate(decoder, [], GREEDY, stop_ids=(), key=KEY) == []
