"""Prompts and training documents, built with an encoder of one id per character."""

import numpy as np
import pytest

from aqaa_jax.config import VocabConfig, WeaveConfig
from aqaa_jax.tokens import prompt as p
from aqaa_jax.tokens.interleave import Segment, split_transcript, unweave_answer, weave_audio
from aqaa_jax.tokens.prompt import Turn
from aqaa_jax.tokens.vocab import (
    AQTA,
    ASR,
    AUDIO_END,
    AUDIO_START,
    BOS,
    BOT,
    EOT,
    TEXT_END,
    TEXT_START,
    TQAA,
    TTS,
    Vocab,
)

VOCAB = Vocab(VocabConfig(size=1000, audio_start=512, linguistic=64, semantic=128))
AUDIO = weave_audio([1, 2, 3, 4], [5, 6, 7, 8, 9, 10], VOCAB)


class Letters:
    """Bytes as ids; a string start costs one more id (a space), like the published tokenizer's word mark."""

    def encode_span(self, text):
        return [68 + b for b in text.encode()]

    def encode(self, text, *, bos=False):
        return [BOS] * bos + self.encode_span(" " + text)


TEXT = Letters()


def spell(text):
    return TEXT.encode_span(text)


HUMAN, ASSISTANT = [BOT, *spell("human\n")], [BOT, *spell("assistant\n")]


def test_chat_prompt():
    turns = [Turn("system", "S"), Turn("user", ["a", AUDIO, "b"]), Turn("assistant", AUDIO), Turn("human", "c")]
    body = [BOT, *spell("system\nS"), EOT, *HUMAN, *spell("a"), *AUDIO, *spell("b"), EOT]
    body += [*ASSISTANT, *AUDIO, EOT, *HUMAN, *spell("c"), EOT]
    assert p.chat_prompt(turns, TEXT) == [BOS, *body, *ASSISTANT]
    assert p.chat_prompt([*turns, Turn("assistant", None)], TEXT) == [BOS, *body, *ASSISTANT]
    assert p.chat_prompt([], TEXT) == [BOS, *ASSISTANT]
    woven = [*AUDIO, EOT]  # a past answer as it was generated
    assert p.chat_prompt([Turn("assistant", woven)], TEXT) == p.chat_prompt([Turn("assistant", AUDIO)], TEXT)
    with pytest.raises(ValueError, match="'tool'"):
        p.chat_prompt([Turn("tool", "x")], TEXT)


def test_template_prompt():
    default = [BOT, *spell("system\nYou are a helpful assistant."), EOT]
    question = [*HUMAN, *spell("q"), EOT]
    assert p.template_prompt([Turn("user", "q")], TEXT) == [*default, *question, *ASSISTANT]
    own = [Turn("system", "mine"), Turn("user", "q")]
    assert p.template_prompt(own, TEXT, generate=False) == [BOT, *spell("system\nmine"), EOT, *question]
    assert p.template_prompt([], TEXT) == [*default, *ASSISTANT]


def test_tts_prompt_of_letters():
    system = spell(" system\n" + p.tts_system("hi"))
    for bos in (False, True):
        one = [BOS] * bos
        human, assistant = [BOT, *one, *spell(" human\n")], [BOT, *one, *spell(" assistant\n")]
        expected = [BOS, BOT, *one, *system, EOT, *human, *spell("said"), EOT, *assistant, *AUDIO, EOT]
        expected += [*human, *spell("hi"), EOT, *assistant]
        assert p.tts_prompt("hi", "said", AUDIO, TEXT, bos=bos) == expected


def test_a_voice_in_the_history_is_that_of_the_tts_prompt():
    """Past exchange and question of ``tts_prompt``, where nothing marks the start of an encoded piece."""

    class Plain(Letters):
        def encode(self, text, *, bos=False):
            return [BOS] * bos + self.encode_span(text)

    turns = [Turn("system", p.tts_system("hi")), *p.voice_turns("said", AUDIO), Turn("human", "hi")]
    assert p.chat_prompt(turns, Plain()) == p.tts_prompt("hi", "said", AUDIO, Plain(), bos=False)


def test_tags_choose_the_system_prompt():
    assert [p.leading_tag(t) for t in ("(RAP)yo", "（高兴1）x", "（RAP)x", "x(RAP)", "()x", "((a)x", "(a\nb)", "")] == [
        "RAP",
        "高兴1",
        "RAP",
        "",
        "",
        "",
        "a\nb",
        "",
    ]
    assert p.tts_system("(RAP)yo", "Tingting") == p.RAP_SYSTEM
    assert p.tts_system("（哼唱）la", "Tingting") == p.HUMMING_SYSTEM
    assert p.tts_system("(RAP)哼唱", "Tingting") == p.HUMMING_SYSTEM  # the published rule looks at the whole text
    assert "[Tingting]" in p.tts_system("(高兴1)x", "Tingting") and "[" not in p.tts_system("x")
    assert p.music_speaker("(RAP)x", "Tingting") == "TingtingRAP"
    assert p.music_speaker("（哼唱）x", "Tingting") == "Tingting哼唱"
    assert p.music_speaker("(高兴1)x", "Tingting") is None


def targets(example):
    assert example.ids.dtype == np.int32 and example.loss_mask.dtype == bool
    count = int(example.loss_mask.sum())
    assert example.loss_mask[-count:].all()  # one run at the end
    return example.ids[:-count].tolist(), example.ids[-count:].tolist()


def test_training_documents():
    head = [BOS, *HUMAN]
    weave = WeaveConfig()
    spoken = [AUDIO_START, *AUDIO, AUDIO_END, EOT]
    segments = [Segment(spell("hey"), AUDIO)]
    woven = [*spell("hey"), *spoken]
    tail = [EOT, *ASSISTANT]
    cases = [
        (p.asr(AUDIO, "hey", TEXT), [ASR, *AUDIO], [*spell("hey"), EOT]),
        (p.tts("hey", AUDIO, TEXT), [TTS, *spell("hey")], spoken),
        (p.written_answer(AUDIO, "hey", TEXT), [AQTA, *AUDIO], [*spell("hey"), EOT]),
        (p.written_answer("q", "hey", TEXT), spell("q"), [*spell("hey"), EOT]),
        (p.spoken_answer(AUDIO, segments, TEXT, weave), AUDIO, woven),
        (p.spoken_answer("q", segments, TEXT, weave), [TQAA, *spell("q")], woven),
    ]
    for example, question, answer in cases:
        assert targets(example) == ([*head, *question, *tail], answer)
    prompt, answer = targets(p.spoken_answer(AUDIO, segments, TEXT, weave, transcript="w"))
    assert prompt == [*head, ASR, TQAA, *AUDIO, *tail]
    assert answer == [TEXT_START, *spell("w"), TEXT_END, *woven]
    transcript, rest = split_transcript(answer)
    assert transcript.tolist() == spell("w") and unweave_answer(rest, VOCAB).text.tolist() == spell("hey")
    prompt, answer = targets(p.continuation(["a", AUDIO, "b"], TEXT))
    assert prompt == [BOS] and answer == [*spell("a"), AUDIO_START, *AUDIO, AUDIO_END, *spell("b"), EOT]
    assert targets(p.continuation([AUDIO], TEXT))[1] == spoken


def test_a_document_starts_with_the_prompt_of_its_task():
    history = [Turn("user", "a"), Turn("assistant", "b")]
    prompt = p.task_prompt("aqtaa", AUDIO, TEXT, system="S", history=history)
    segments = [Segment(spell("hey"), AUDIO)]
    example = p.spoken_answer(AUDIO, segments, TEXT, WeaveConfig(), system="S", history=history)
    assert targets(example)[0] == prompt
    assert prompt == p.chat_prompt([Turn("system", "S"), *history, Turn("user", AUDIO)], TEXT)
    prompts = {tuple(p.task_prompt(task, AUDIO, TEXT)) for task in p.TASK_IDS if task != "tqta"}
    assert len(prompts) == len(p.TASK_IDS) - 1  # tqta and aqtaa differ by their content
    with pytest.raises(ValueError, match="'sing'"):
        p.task_prompt("sing", "x", TEXT)
