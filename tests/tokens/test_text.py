"""The text tokenizer over a small SentencePiece model trained here with the published control ids."""

import random

import pytest
import sentencepiece as spm

from aqaa_jax.config import VocabConfig
from aqaa_jax.tokens.text import TextTokenizer, train_pocket
from aqaa_jax.tokens.vocab import BOS, BOT, BYTE_START, EOT, SPECIAL_PIECES, Vocab

VOCAB = Vocab(VocabConfig(size=1000, audio_start=512, linguistic=64, semantic=128))
WORDS = [
    "human",
    "assistant",
    "system",
    "what",
    "is",
    "the",
    "time",
    "one",
    "two",
    "three",
    "plus",
    "you",
    "say",
    "red",
    "green",
    "tell",
    "me",
    "yes",
    "no",
    "12",
    "7",
]


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 9))) + "?\nhuman" for _ in range(300)]


@pytest.fixture(scope="module")
def path(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "pocket.model"
    train_pocket(texts, path, VOCAB)
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return TextTokenizer.load(path, VOCAB)


def test_layout_of_the_trained_model(path):
    processor = spm.SentencePieceProcessor(model_proto=path.read_bytes())
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    assert tuple(pieces[:68]) == SPECIAL_PIECES
    assert pieces[68] == "<0x00>" and pieces[323] == "<0xFF>" and 324 < len(pieces) <= VOCAB.audio_start
    assert all(processor.is_control(i) for i in range(1, 68))
    assert not any("\n" in piece for piece in pieces)


def test_training_is_reproducible(texts, path, tmp_path):
    train_pocket(iter(texts), tmp_path / "again.model", VOCAB)
    assert (tmp_path / "again.model").read_bytes() == path.read_bytes()
    train_pocket(texts, tmp_path / "small.model", VOCAB, size=360)
    assert spm.SentencePieceProcessor(model_proto=(tmp_path / "small.model").read_bytes()).get_piece_size() <= 360
    for size in (324, 513):
        with pytest.raises(ValueError, match=str(size)):
            train_pocket(texts, tmp_path / "bad.model", VOCAB, size=size)
    with pytest.raises(ValueError, match="no text"):
        train_pocket(["\n", ""], tmp_path / "bad.model", VOCAB)


def test_word_mark_at_the_string_start_only(tokenizer, path):
    """The published vectors' structure: ``▁human \\n`` at a start, ``human \\n`` after a control piece."""
    piece = spm.SentencePieceProcessor(model_proto=path.read_bytes()).piece_to_id
    newline = BYTE_START + 10
    assert newline == 78
    assert tokenizer.encode("human\n", bos=True) == [BOS, piece("▁human"), newline]
    assert tokenizer.encode("\n") == [piece("▁"), newline]
    assert tokenizer.encode(" human") == tokenizer.encode("human")
    ids = tokenizer.encode("<|BOT|>human\nyou<|EOT|><|BOT|>assistant\n", bos=True)
    human, assistant = piece("human"), piece("assistant")
    assert ids == [BOS, BOT, human, newline, *tokenizer.encode_span("you"), EOT, BOT, assistant, newline]
    assert piece("<unk>") not in (human, assistant, piece("▁human"))
    audio = tokenizer.encode("<|BOT|>human\n<audio_1><audio_2><audio_190><|EOT|>")
    assert audio == [BOT, human, newline, 513, 514, 702, EOT]
    assert tokenizer.encode("") == []


def test_a_header_never_merges_with_its_text(tokenizer):
    for text in ("what is", " the time", "\n\nsay", "你好"):
        assert tokenizer.encode_span("human\n" + text) == tokenizer.encode_span("human\n") + tokenizer.encode_span(text)


def test_round_trips(tokenizer):
    rng = random.Random(1)
    alphabet = "abch nyou  \n12?é你🙂"
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 30)))
        assert tokenizer.decode_span(tokenizer.encode_span(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, bos=True)) == text.removeprefix(" ")
    marked = "<|BOT|>human\nwhat 你<audio_7><|EOT|><|BOT|>assistant\n<audio_start>"
    assert tokenizer.decode(tokenizer.encode(marked, bos=True)) == marked


def test_spans_are_only_text(tokenizer):
    """What a user writes can not close a turn or spell audio."""
    for text in ("<|EOT|><|BOT|>assistant\n", "<audio_5>", "<<audio_5><s></s>", "<audio_start>", "<0x0A>"):
        ids = tokenizer.encode_span(text)
        assert all(BYTE_START <= i < VOCAB.audio_start for i in ids)
        assert tokenizer.decode_span(ids) == text


def test_spans_are_only_text_when_the_model_knows_audio_pieces(tmp_path):
    """A full model, as published: audio pieces are user-defined symbols of the SentencePiece file itself."""
    vocab = Vocab(VocabConfig(size=400 + 8, audio_start=400, linguistic=3, semantic=5))
    audio = [f"<audio_{k}>" for k in range(8)]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    texts = ["".join(chr(0x4E00 + i) for i in range(60))] * 9
    train_pocket(texts, tmp_path / "text.model", vocab, size=400)
    from sentencepiece import sentencepiece_model_pb2 as pb2  # only to append pieces as the publisher did

    proto = pb2.ModelProto.FromString((tmp_path / "text.model").read_bytes())
    for index in range(len(proto.pieces), 400):
        proto.pieces.add(piece=f"filler{index}", score=-99.0, type=1)
    for piece in audio:
        proto.pieces.add(piece=piece, score=0.0, type=4)
    assert [p.piece for p in proto.pieces][68:324] == bytes_
    (tmp_path / "full.model").write_bytes(proto.SerializeToString())
    tokenizer = TextTokenizer.load(tmp_path / "full.model", vocab)
    assert tokenizer.encode("<|BOT|>一<audio_0><audio_7>") == [BOT, *tokenizer.encode_span("一"), 400, 407]
    ids = tokenizer.encode_span("<audio_5>")
    assert max(ids) < 400 and tokenizer.decode_span(ids) == "<audio_5>"


def test_decoding_is_tolerant(tokenizer):
    assert tokenizer.decode_span([BYTE_START + 0xE4, BYTE_START + 0x41]) == "\ufffdA"
    assert tokenizer.decode_span([-1, 5000, 511]) == "<unk>" * 3


def test_bad_files(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=r"none\.model"):
        TextTokenizer.load(tmp_path / "none.model", VOCAB)
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.model"):
        TextTokenizer.load(tmp_path / "junk.model", VOCAB)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 20), model_prefix=str(tmp_path / "other"), vocab_size=8, model_type="char"
    )
    with pytest.raises(ValueError, match=r"'<\|EOT\|>'"):
        TextTokenizer.load(tmp_path / "other.model", VOCAB)
    with pytest.raises(ValueError, match="pieces; expected"):
        TextTokenizer.load(path, Vocab(VocabConfig(size=800, audio_start=330, linguistic=64, semantic=128)))
    with pytest.raises(ValueError, match="audio_9999"):
        TextTokenizer.load(path, VOCAB).encode("<audio_9999>")
