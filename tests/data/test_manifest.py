"""Manifests: every line checked where it is read; records there and back through their flat form."""

import json

import numpy as np
import pytest
from conversations import conversation

from aqaa_jax.data.manifest import Manifest
from aqaa_jax.data.records import Codes, Part, Pcm, Record, Turn, check, flat, from_flat, pcm, waveform
from aqaa_jax.dsp import wav

TONE = (0.3 * np.sin(np.arange(1600) * 0.2)).astype(np.float32)


def manifest(folder, *lines):
    path = folder / "m.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return Manifest(path)


def human(**values):
    return {"turns": [{"role": "human", **values}]}


def test_a_line_becomes_a_conversation(tmp_path):
    (tmp_path / "wav").mkdir()
    wav.write(tmp_path / "wav" / "a.wav", TONE, 16000)
    source = manifest(
        tmp_path,
        {
            "id": "a",
            "turns": [
                {"role": "user", "text": "Hi ä.", "audio": "wav/a.wav"},
                {
                    "role": "assistant",
                    "parts": [{"text": "Ho.", "style": "happy"}, {"linguistic": [1, 2], "semantic": [3, 4, 5]}],
                },
            ],
            "rejected": {"text": "Hm."},
        },
        "",
        human(text="plain"),
    )
    assert len(source) == 2
    record = source[0]
    assert [turn.role for turn in record.turns] == ["human", "assistant"] and record.id == "a"
    assert record.turns[0].parts[0].sound == tmp_path / "wav" / "a.wav"
    assert record.turns[1].parts[0] == Part("Ho.", "happy") and record.rejected == (Part("Hm."),)
    np.testing.assert_array_equal(record.turns[1].parts[1].codes.semantic, [3, 4, 5])
    assert source[1].id == "line-3" and source[1].turns[0].text == "plain"
    before = source.fingerprint()
    assert manifest(tmp_path, human(text="other")).fingerprint() != before


BAD = [
    ("{", "not JSON"),
    ([1], "the line is [1]; expected an object"),
    ({"turns": []}, "turns is empty"),
    ({"id": "x"}, "turns is None; expected a list of turns"),
    ({"turns": [], "text": 1}, "unknown key 'text'; expected some of id, turns, rejected"),
    ({"turns": [{"role": "bob", "text": "a"}]}, "turns[0].role is 'bob'; expected one of system, user, human"),
    (human(), "turns[0] has neither text nor audio nor codes"),
    (human(text="  "), "turns[0] has neither text nor audio nor codes"),
    (human(text=7), "turns[0].text is 7; expected a string"),
    (human(audio="no.wav"), "turns[0].audio: {folder}/no.wav: no such file"),
    (human(linguistic=[1]), "turns[0] has linguistic codes only; expected both of linguistic, semantic"),
    (human(linguistic=[1.5], semantic=[1]), "turns[0].linguistic is [1.5]; expected a list of integers"),
    (human(linguistic=[1], semantic=[-1]), "turns[0] has a negative code"),
    (human(parts=[{"text": "a"}], text="b"), "turns[0] has the unknown key 'text'"),
    ({"turns": [{"role": "human", "text": "a"}], "rejected": {"text": "b"}}, "expected the last turn to be assistant"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, message):
    source = manifest(tmp_path, human(text="good"), line)
    assert source[0].turns[0].text == "good"
    with pytest.raises(ValueError) as caught:
        source[1]
    assert str(caught.value).startswith(f"{tmp_path}/m.jsonl:2: ")
    assert message.format(folder=tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_empty_manifests_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such manifest"):
        Manifest(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="has no lines"):
        manifest(tmp_path, "", "  ")


def equal(one, other):
    assert one._replace(turns=(), rejected=()) == other._replace(turns=(), rejected=())
    assert [(t.role, len(t.parts)) for t in one.turns] == [(t.role, len(t.parts)) for t in other.turns]
    for a, b in zip(one.parts, other.parts, strict=True):
        assert (a.text, a.style) == (b.text, b.style)
        for x, y in ((a.codes, b.codes), (a.sound, b.sound)):
            assert (x is None) == (y is None)
            for left, right in zip(x or (), y or (), strict=True):
                np.testing.assert_array_equal(left, right)


def test_flat_and_back():
    mood = (
        Part("a ä", "sad", pcm(TONE, 22050)),
        Part("", "", None, Codes(np.zeros(0, np.int32), np.arange(3, dtype=np.int32))),
    )
    for record in (
        conversation(3, rejected=True),
        Record("x", (Turn("system", (Part("s"),)), Turn("human", mood), Turn("assistant", (Part("b"), *mood)))),
    ):
        equal(record, from_flat(flat(record)))
        encoded = {k: [s.encode() for s in v] if k in ("role", "text", "style") else v for k, v in flat(record).items()}
        equal(record, from_flat(encoded))


def test_new_parts_go_where_the_old_ones_were():
    record = conversation(2, rejected=True)
    again = record.with_parts([part._replace(style=str(k)) for k, part in enumerate(record.parts)])
    assert [p.style for p in again.parts] == ["0", "1", "2"] and again.rejected[0].style == "2"


def test_zero_duration_and_loudness():
    silent = Record("x", (Turn("human", (Part("a", sound=Pcm(np.zeros(0, np.int16), 16000)),)),))
    with pytest.raises(ValueError, match="zero duration"):
        check(silent)
    with pytest.raises(ValueError, match="record 'x'"):
        from_flat({**flat(silent), "turn": np.zeros(0, np.int32)})
    loud, rate = waveform(pcm(4 * TONE, 8000))
    assert rate == 8000 and loud.min() >= -1 and loud.max() < 1
    np.testing.assert_allclose(waveform(pcm(TONE, 8000))[0], TONE, atol=2**-16)
