"""The tokenizer in the forms other programs read. That transformers gives our ids: tests/convert/test_torch_twin.py."""

import pytest
from sentencepiece import sentencepiece_model_pb2 as pb

from aqaa_jax.config import VocabConfig
from aqaa_jax.tokens import published
from aqaa_jax.tokens.text import TextTokenizer, train_pocket
from aqaa_jax.tokens.vocab import SPECIAL_PIECES, Vocab

SMALL = Vocab(VocabConfig(size=400, audio_start=360, linguistic=10, semantic=24))  # 6 ids that are never produced


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokenizer.model"
    train_pocket(["what is two plus three", "three is more than two"], path, SMALL, size=345)
    return path


def parsed(data):
    proto = pb.ModelProto()
    proto.ParseFromString(data)
    return proto


def test_every_id_gets_a_piece_and_texts_keep_their_ids(model, tmp_path):
    whole = published.whole_model(model.read_bytes(), SMALL)
    pieces = [p.piece for p in parsed(whole).pieces]
    assert len(pieces) == len(set(pieces)) == SMALL.size
    assert pieces[SMALL.audio_start :] == [f"<audio_{k}>" for k in range(40)]
    (tmp_path / "whole.model").write_bytes(whole)
    before, after = TextTokenizer.load(model, SMALL), TextTokenizer.load(tmp_path / "whole.model", SMALL)
    for text in ("what is two", "<|BOT|>human\n<audio_3>two<|EOT|>", "Ünseen 日本", "<unused_350>"):
        assert before.encode(text, bos=True) == after.encode(text, bos=True)
        assert before.encode_span(text) == after.encode_span(text)
    assert published.whole_model(whole, SMALL) is whole  # the published model is kept as it is


def test_fast_tokenizer_holds_the_same_pieces(model):
    whole = published.whole_model(model.read_bytes(), SMALL)
    values = published.fast_tokenizer(whole)
    assert values["model"]["type"] == "Unigram" and values["model"]["byte_fallback"]
    assert values["model"]["vocab"] == [[p.piece, p.score] for p in parsed(whole).pieces]
    added = {t["id"]: (t["content"], t["special"]) for t in values["added_tokens"]}
    assert {i: c for i, (c, special) in added.items() if special} == dict(enumerate(SPECIAL_PIECES))
    audio = {i: c for i, (c, special) in added.items() if not special}
    assert audio == {SMALL.audio_start + k: f"<audio_{k}>" for k in range(40)}
    assert values["post_processor"]["special_tokens"]["<s>"]["ids"] == [1]


def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        published.whole_model(b"\xff not a model", SMALL)
    with pytest.raises(ValueError, match="pieces; expected up to 340"):
        published.whole_model(
            model.read_bytes(), Vocab(VocabConfig(size=400, audio_start=340, linguistic=10, semantic=24))
        )
