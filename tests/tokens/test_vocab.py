"""The id layout: published and pocket."""

import numpy as np
import pytest

from aqaa_jax.config import VocabConfig
from aqaa_jax.tokens import vocab as v
from aqaa_jax.tokens.vocab import TokenClass, Vocab

POCKET = VocabConfig(size=1000, audio_start=512, linguistic=64, semantic=128)


def test_published_layout():
    vocab = Vocab(VocabConfig())
    assert vocab.linguistic_ids([0, 1023]).tolist() == [65536, 66559]
    assert vocab.semantic_ids([0, 4095]).tolist() == [66560, 70655]
    assert vocab.vocoder_codes([65536, 66560, 70655]).tolist() == [0, 1024, 5119]
    assert vocab.audio == 5120
    assert np.bincount(vocab.classes, minlength=len(TokenClass))[[0, 1, 2, 9]].tolist() == [
        65536 - 68,
        1024,
        4096,
        74752 - 70656,
    ]
    assert np.sum(vocab.classes[:68] == TokenClass.CONTROL) == 68 - 5


def test_special_pieces():
    published = """0 <unk> 1 <s> 2 </s> 3 <|EOT|> 4 <|BOT|> 5 <|CALL_START|> 8 <|THINK_END|> 12 <|META_END|>
    13 <im_patch> 16 <dream> 20 <|UNMASK_1e69f|> 22 <video_end> 24 <column_patch> 25 <|SEP_1e69f|>
    26 <user_defined_symbol_22> 30 <user_defined_symbol_26> 31 <audio_start> 32 <audio_end> 33 <text_start>
    34 <text_end> 35 <|TTS|> 36 <|ASR|> 37 <|TQAA|> 38 <|AQTA|> 39 <user_defined_symbol_35>
    67 <user_defined_symbol_63>"""
    words = published.split()
    for index, piece in zip(words[::2], words[1::2], strict=True):
        assert v.SPECIAL_PIECES[int(index)] == piece
    names = {v.BOS: "<s>", v.EOS: "</s>", v.EOT: "<|EOT|>", v.BOT: "<|BOT|>", v.AUDIO_START: "<audio_start>"}
    names |= {v.AUDIO_END: "<audio_end>", v.TEXT_START: "<text_start>", v.TEXT_END: "<text_end>"}
    names |= {v.TTS: "<|TTS|>", v.ASR: "<|ASR|>", v.TQAA: "<|TQAA|>", v.AQTA: "<|AQTA|>"}
    assert all(v.SPECIAL_PIECES[index] == name for index, name in names.items())
    assert len(v.SPECIAL_PIECES) == len(set(v.SPECIAL_PIECES)) == v.NUM_SPECIAL == 68


@pytest.mark.parametrize("config", [VocabConfig(), POCKET], ids=["published", "pocket"])
def test_codes_and_ids_are_inverse(config):
    vocab = Vocab(config)
    linguistic, semantic = np.arange(config.linguistic), np.arange(config.semantic)
    assert (vocab.linguistic_codes(vocab.linguistic_ids(linguistic)) == linguistic).all()
    assert (vocab.semantic_codes(vocab.semantic_ids(semantic)) == semantic).all()
    ids = np.arange(config.audio_start, config.audio_start + config.linguistic + config.semantic)
    assert (vocab.from_vocoder_codes(vocab.vocoder_codes(ids)) == ids).all()
    assert vocab.is_audio(np.arange(config.size)).sum() == vocab.audio
    assert (vocab.classify(ids[: config.linguistic]) == TokenClass.LINGUISTIC).all()
    assert (vocab.classify(ids[config.linguistic :]) == TokenClass.SEMANTIC).all()


def test_errors_name_the_value():
    vocab = Vocab(POCKET)
    for call, value in [
        (vocab.linguistic_ids, 64),
        (vocab.linguistic_ids, -1),
        (vocab.semantic_ids, 128),
        (vocab.linguistic_codes, 576),
        (vocab.semantic_codes, 575),
        (vocab.vocoder_codes, 511),
        (vocab.vocoder_codes, 704),
    ]:
        with pytest.raises(ValueError, match=f" {value} "):
            call([value])
    with pytest.raises(ValueError, match="float64"):
        vocab.linguistic_ids([0.5])
    for bad in (
        VocabConfig(size=600, audio_start=512, linguistic=64, semantic=128),
        VocabConfig(audio_start=100),
        VocabConfig(linguistic=0),
    ):
        with pytest.raises(ValueError):
            Vocab(bad)


def test_classify_never_raises():
    vocab = Vocab(POCKET)
    classes = vocab.classify([-5, 10**12, 999, 704, 3, 31, 68, 511, 67])
    expected = "UNUSED UNUSED UNUSED UNUSED EOT AUDIO_START TEXT TEXT CONTROL"
    assert [TokenClass(c).name for c in classes] == expected.split()
    assert vocab.classify([]).shape == (0,)
