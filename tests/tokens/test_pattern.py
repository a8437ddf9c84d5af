"""The automaton accepts what is woven, rejects what is not, and can steer a random model to a valid answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.config import VocabConfig, WeaveConfig
from aqaa_jax.tokens import interleave as il
from aqaa_jax.tokens.pattern import START, automaton, first_illegal
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, BOT, EOT, TEXT_END, TEXT_START, TokenClass, Vocab

VOCAB = Vocab(VocabConfig(size=1000, audio_start=512, linguistic=64, semantic=128))
WEAVES = {
    "10:15": WeaveConfig(),
    "6:50": WeaveConfig(text=6, linguistic=20, semantic=30),
    "3:5": WeaveConfig(text=3, linguistic=2, semantic=3),
    "1:10": WeaveConfig(text=1, linguistic=4, semantic=6),
    "audio_only": WeaveConfig(pattern="audio_only"),
    "text_cot": WeaveConfig(pattern="text_cot"),
}


def segment(num_text, groups):
    return il.Segment([400] * num_text, [512, 513, 576, 577, 578] * groups)


@pytest.mark.parametrize("name", WEAVES)
def test_accepts_every_woven_answer(name):
    rng, tables = np.random.default_rng(0), automaton(WEAVES[name], VOCAB)
    for _ in range(50):
        count = int(rng.integers(1, 4))
        segments = [segment(rng.integers(0, 40), rng.integers(i == 0, 15)) for i in range(count)]
        for strategy in (il.marker_preserving, il.pre_interleaved, il.marker_removal):
            ids = strategy(segments, WEAVES[name])
            assert first_illegal(tables, ids) is None, ids


def test_rejects_what_is_not_woven():
    tables = automaton(WeaveConfig(), VOCAB)
    text, left, right = [400], [512], [576]
    group = left * 2 + right * 3
    first = [*text * 10, AUDIO_START]
    for ids, index in [
        (text * 11, 10),  # text beyond the first block
        (left, 0),  # audio outside a span
        (first + right, 11),
        (first + text, 11),
        (first + left * 3, 13),
        (first + left * 2 + right * 4, 16),
        (first + group + text, 16),  # text inside a block
        (first + group * 3 + text * 11, 36),
        (first + group * 3 + text * 4 + group + text, 35),  # text after the text has ended
        (first + group * 4 + text, 31),
        ([*first, *group, EOT], 16),  # an open span at the end
        ([*first, AUDIO_END], 11),
        ([*first, *group * 3, *text * 10, AUDIO_END], 36),
        ([EOT], 0),
        ([BOT], 0),
        ([999], 0),
        ([*first, *group, AUDIO_END, EOT, 400], 18),
    ]:
        assert first_illegal(tables, ids) == index


def test_patterns_differ():
    text_first = il.weave_answer(*segment(24, 4), WEAVES["text_cot"])
    assert first_illegal(automaton(WEAVES["10:15"], VOCAB), text_first) == 10
    assert first_illegal(automaton(WEAVES["audio_only"], VOCAB), text_first) == 0
    woven = il.weave_answer(*segment(24, 4), WEAVES["10:15"])
    assert first_illegal(automaton(WEAVES["text_cot"], VOCAB), woven) == 26


def test_transcript_in_front():
    tables = automaton(WeaveConfig(), VOCAB, transcript=True)
    answer = il.weave_answer(*segment(24, 11), WeaveConfig()).tolist()
    assert first_illegal(tables, [TEXT_START, 400, 401, TEXT_END, *answer]) is None
    assert first_illegal(tables, answer) == 0
    assert first_illegal(tables, [TEXT_START, 600]) == 1


@pytest.mark.parametrize("name", WEAVES)
def test_every_state_leads_to_the_end(name):
    tables = automaton(WEAVES[name], VOCAB)
    states = len(tables.allowed)
    assert tables.allowed.any(axis=1).all() and states < 200
    ends = [i for i in range(states) if tables.allowed[i].tolist() == [c == TokenClass.EOT for c in TokenClass]]
    assert len(ends) == 1 and tables.transition[ends[0], TokenClass.EOT] == ends[0]
    reached = {START}
    leading = set(ends)
    for _ in range(states):
        reached |= {int(t) for i in reached for t in tables.transition[i, tables.allowed[i]]}
        leading |= {i for i in range(states) if leading & set(tables.transition[i, tables.allowed[i]].tolist())}
    assert len(reached) == len(leading) == states


@pytest.mark.parametrize("name", ["10:15", "text_cot"])
def test_steers_a_random_model_under_jit(name):
    tables = jax.tree.map(jnp.asarray, automaton(WEAVES[name], VOCAB))

    @jax.jit
    def generate(noise):
        def step(state, scores):
            legal = tables.allowed[state][tables.class_of_id]
            token = jnp.argmax(jnp.where(legal, scores, -jnp.inf))
            return tables.transition[state, tables.class_of_id[token]], token

        return jax.lax.scan(step, jnp.int32(START), noise)[1]

    for seed in range(4):
        ids = np.asarray(generate(jax.random.gumbel(jax.random.key(seed), (250, VOCAB.size))))
        back = il.unweave_answer(ids, VOCAB)
        assert back.problems._replace(unfinished=0, audio=0) == il.Problems()
        assert back.problems.audio < (5 if back.problems.unfinished else 1)  # a cut may fall into a group
