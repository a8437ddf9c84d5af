"""The pattern: every woven answer passes, every answer that passes takes apart without a problem."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.config import VocabConfig, WeaveConfig
from aqaa_jax.inference.pattern import pattern
from aqaa_jax.inference.sampling import NO_TOKEN
from aqaa_jax.tokens.interleave import Segment, marker_preserving, unweave_answer
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, EOT, Vocab

CONFIG = VocabConfig(size=400 + 5120, audio_start=400)
VOCAB, WEAVE = Vocab(CONFIG), WeaveConfig()
INITIAL, STEP = pattern(CONFIG, WEAVE)
walk = jax.jit(STEP)


def woven(text, *groups):
    rng = np.random.default_rng(text)
    audio = [_groups(rng, count) for count in groups]
    segments = [Segment(rng.integers(70, 400, size=text), audio[0]), *(Segment([], a) for a in audio[1:])]
    return marker_preserving(segments, WEAVE)


def _groups(rng, count):
    linguistic, semantic = 400 + rng.integers(1024, size=(count, 2)), 1424 + rng.integers(4096, size=(count, 3))
    return np.concatenate([linguistic, semantic], axis=1).reshape(-1)


@pytest.mark.parametrize("text", [0, 1, 9, 10, 11, 20, 31])
@pytest.mark.parametrize("groups", [(0,), (1,), (2,), (3,), (4,), (9,), (1, 4), (3, 3), (2, 5)])
def test_every_woven_answer_passes(text, groups):
    ids = woven(text, *groups)
    place, allowed = walk(INITIAL, jnp.int32(NO_TOKEN))
    if len(ids) == 1:  # an answer of nothing is none
        assert not allowed[EOT]
        return
    for k, token in enumerate(ids):
        assert allowed[token], (k, ids.tolist(), place)
        place, allowed = walk(place, jnp.int32(token))


@pytest.mark.parametrize("seed", range(12))
def test_what_passes_takes_apart_without_a_problem(seed):
    rng = np.random.default_rng(seed)
    place, allowed = walk(INITIAL, jnp.int32(NO_TOKEN))
    kinds = [np.arange(70, 400), np.arange(400, 1424), np.arange(1424, 5520), [AUDIO_START], [AUDIO_END], [EOT]]
    ids = []
    for k in itertools.count():
        free = [kind for kind in kinds if np.asarray(allowed)[kind].all()]
        assert free, ids  # never a dead end
        closing = [kind for kind in free if kind[0] in (AUDIO_END, EOT)]
        kind = closing[-1] if k > 60 and closing else free[rng.integers(len(free))]
        ids.append(int(rng.choice(kind)))
        if ids[-1] == EOT:
            break
        place, allowed = walk(place, jnp.int32(ids[-1]))
    problems = unweave_answer(ids, VOCAB).problems
    assert all(count == 0 for count in problems), problems


def test_text_is_over_once_a_block_had_less_than_it_may():
    place, _ = walk(INITIAL, jnp.int32(100))
    for token in (AUDIO_START, 400, 401, 1424, 1425, 1426, 402, 403, 1427, 1428, 1429, 404, 405, 1430, 1431, 1432):
        place, allowed = walk(place, jnp.int32(token))
    assert not allowed[100] and allowed[400] and allowed[AUDIO_END] and not allowed[EOT] and not allowed[1424]


def test_other_patterns_are_not_held():
    assert pattern(CONFIG, WeaveConfig(pattern="text_cot")) is None
    assert pattern(CONFIG, WEAVE)[1] is STEP  # one function, or every answer would be compiled anew
