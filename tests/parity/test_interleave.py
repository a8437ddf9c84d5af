"""Parity with the reference's tokenizer.py, stepaudio.py, tts.py: streams, strings and prompts, all exact.

The published SentencePiece file is not part of the golden data, so prompts are built with an encoder that
knows the ids of exactly those strings that occur; what it is asked for proves the structure.
"""

import json
import re

import numpy as np
import pytest

from aqaa_jax.config import VocabConfig
from aqaa_jax.tokens import prompt
from aqaa_jax.tokens.interleave import unweave_answer, unweave_audio, weave_audio
from aqaa_jax.tokens.prompt import Turn
from aqaa_jax.tokens.text import TextTokenizer, train_pocket
from aqaa_jax.tokens.vocab import BOS, BOT, EOT, Vocab

pytestmark = pytest.mark.parity
VOCAB = Vocab(VocabConfig())


def load(golden, name):
    return json.loads(golden(f"interleave/{name}.json").read_text(encoding="utf-8"))


def audio_string(ids):
    return "".join(f"<audio_{k}>" for k in VOCAB.vocoder_codes(ids))


class Recorded:
    """A text encoder that knows the recorded strings only; remembers what it was asked."""

    def __init__(self, spans=(), whole=()):
        self.spans, self.whole, self.asked = dict(spans), dict(whole), []

    def encode_span(self, text):
        return list(self.spans[text])

    def encode(self, text, *, bos=False):
        self.asked.append(text)
        return [BOS] * bos + list(self.whole[text])


def test_weave(golden):
    data = load(golden, "interleave")
    for case in data["examples"]:
        ids = weave_audio(case["vq02"], case["vq06"], VOCAB)
        assert ids.tolist() == case["wav2token"] == case["merge_str_ids"]
        assert audio_string(ids) == case["merge_str"]
        linguistic, semantic = unweave_audio(ids, VOCAB)
        assert linguistic.tolist() == case["vq02"][: len(linguistic)]
        assert semantic.tolist() == case["vq06"][: len(semantic)]
        back = unweave_answer(case["wav2token"], VOCAB)
        assert back.linguistic.tolist() == linguistic.tolist() and back.semantic.tolist() == semantic.tolist()
        assert back.problems.audio == 0
    for num_linguistic, num_semantic, num_ids in data["length_grid_vq02_vq06_out"]:
        assert len(weave_audio([0] * num_linguistic, [0] * num_semantic, VOCAB)) == num_ids


def test_tokens_of_waveforms(golden):
    cases = load(golden, "wav2token")
    streams = {name: case for name, case in cases.items() if isinstance(case, dict)}
    for case in streams.values():
        assert weave_audio(case["vq02"], case["vq06"], VOCAB).tolist() == case["tokens"]
    strings = {name: case for name, case in cases.items() if isinstance(case, str)}
    for name, string in strings.items():
        same = streams[name.replace("_call", "_trim0_norm1")]["tokens"]  # the chat path does not trim
        assert string == audio_string(same)
    assert len(streams) + len(strings) == len(cases)


def turns_of(case, audio):
    for message in case["messages"]:
        content = message["content"]
        if isinstance(content, dict):
            codes = audio.get(content.get("audio"), {})
            content = content["text"] if content["type"] == "text" else weave_audio(codes["vq02"], codes["vq06"], VOCAB)
        yield Turn(message["role"], content)


def chat_spans(cases, audio):
    """Ids of every role header and text content, read off the recorded ids turn by turn."""
    spans = {}
    for case in cases:
        ids, newline = case["ids_no_special"], 78
        pieces = re.split(r"<\|BOT\|>", case["prompt"])[1:]
        starts = [i for i, token in enumerate(ids) if token == BOT] + [len(ids)]
        for piece, start, stop in zip(pieces, starts[:-1], starts[1:], strict=True):
            inner = [i for i in ids[start + 1 : stop] if i != EOT]
            header, content = piece.removesuffix("<|EOT|>").split("\n", 1)
            cut = inner.index(newline) + 1
            spans.setdefault(header + "\n", inner[:cut])
            spans.setdefault(content, inner[cut:])
            assert spans[header + "\n"] == inner[:cut]  # the same header, the same ids
    return spans


def test_chat_prompts(golden):
    data = load(golden, "chat_template")
    encoder = Recorded(spans=chat_spans(data["cases"], data["audio"]))
    for case in data["cases"]:
        ids = prompt.chat_prompt(list(turns_of(case, data["audio"])), encoder)
        assert ids == case["ids_autotokenizer"]
        assert ids[1:] == case["ids_no_special"]


def test_chat_prompts_through_a_tokenizer(golden, tmp_path):
    """With a real SentencePiece model: built from turns = parsed from the recorded string, and back."""
    data = load(golden, "chat_template")
    texts = [re.sub(r"<[^>]*>", " ", case["prompt"]) for case in data["cases"]]
    tokenizer = train_pocket(texts * 30, tmp_path / "text.model", VOCAB, size=600)
    assert isinstance(tokenizer, TextTokenizer)
    for case in data["cases"]:
        ids = prompt.chat_prompt(list(turns_of(case, data["audio"])), tokenizer)
        assert ids == tokenizer.encode(case["prompt"], bos=True)
        assert tokenizer.decode(ids) == case["prompt"] == case["decoded"]
        recorded = np.asarray(case["ids_autotokenizer"])
        control_or_audio = (recorded < 68) | VOCAB.is_audio(recorded)
        ours = np.asarray(ids)
        assert ours[(ours < 68) | VOCAB.is_audio(ours)].tolist() == recorded[control_or_audio].tolist()


@pytest.mark.parametrize("bos", [False, True])
def test_tts_prompts(golden, bos):
    data = load(golden, "tts_prompt")
    for case in data["cases"]:
        ids = case["ids_no_bos"]
        turns = [ids[i + 1 :] for i in np.flatnonzero(np.asarray(ids) == BOT)]
        closed = [turn[: turn.index(EOT)] for turn in turns[:-1]]  # system, human, assistant, human
        cut = closed[1].index(78) + 1
        system, newline, prompt_text, text, human, assistant = case["encode_calls"]
        start = [324, 78]  # what the string "\n" is; cut off again by the builder
        whole = {newline: start, prompt_text: start + closed[1][cut:], text: start + closed[3][cut:]}
        whole |= {system: closed[0], human: closed[1][:cut], assistant: turns[-1]}
        encoder = Recorded(whole=whole)
        ours = prompt.tts_prompt(
            case["text"], case["prompt_text"], data["prompt_code"], encoder, speaker=case["prompt_speaker"], bos=bos
        )
        assert ours == case["ids_autotokenizer" if bos else "ids_no_bos"]
        assert set(encoder.asked) == set(case["encode_calls"])
        assert prompt.leading_tag(case["text"]) == case["instruction"]
