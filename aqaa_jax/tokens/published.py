"""The text tokenizer in the forms that other programs read: a whole SentencePiece model, transformers' fast tokenizer.

The published ``tokenizer.model`` is a unigram model that holds a piece for every id, the audio ids too. Ours may stop
short of them (``TextTokenizer`` knows the audio ids by their place); ``whole_model`` fills it up.

``fast_tokenizer`` exists because transformers reads ``tokenizer.model`` in two ways: 4.x makes the unigram tokenizer
that the models were trained with, 5.x takes every Llama tokenizer for byte-pair encoding and gives other ids (seen with
5.23). A ``tokenizer.json`` leaves nothing to guess.
"""

from __future__ import annotations

from typing import Any

from sentencepiece import sentencepiece_model_pb2

from aqaa_jax.tokens.prompt import ROLES
from aqaa_jax.tokens.vocab import BOS, SPECIAL_PIECES, UNK, Vocab

WORD_MARK = "▁"
pb: Any = sentencepiece_model_pb2  # makes its classes when imported, where no type checker sees them
_PIECE = pb.ModelProto.SentencePiece
_ADDED_TYPES = (_PIECE.UNKNOWN, _PIECE.CONTROL, _PIECE.USER_DEFINED)
# The chat script's turns; text in it is encoded as one string, which gives the ids of ``prompt.chat_prompt``.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|BOT|>' + ("
    + "".join(f"'{said}' if message['role'] == '{role}' else " for role, said in ROLES.items() if role != said)
    + "message['role']) + '\\n' + message['content'] + '<|EOT|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|BOT|>assistant\\n' }}{% endif %}"
)


def whole_model(model: bytes, vocab: Vocab) -> bytes:
    """A SentencePiece model with one piece for each of ``vocab.size`` ids, as the published one; that one is kept.

    Audio ids are ``<audio_0>``, ``<audio_1>`` ...; ids between the last text piece and the first audio id are filled
    with unused pieces. Raises ``ValueError`` if the model has another number of pieces than a tokenizer of ``vocab``.
    """
    proto = _parsed(model)
    size = len(proto.pieces)
    if size == vocab.size:
        return model
    if size > vocab.audio_start:
        raise ValueError(
            f"SentencePiece model of {size} pieces; expected up to {vocab.audio_start} or exactly {vocab.size}"
        )
    for index in range(size, vocab.audio_start):
        proto.pieces.add(piece=f"<unused_{index}>", score=0.0, type=_PIECE.UNUSED)
    for index in range(vocab.size - vocab.audio_start):
        proto.pieces.add(piece=f"<audio_{index}>", score=0.0, type=_PIECE.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def fast_tokenizer(model: bytes) -> dict[str, Any]:
    """The content of ``tokenizer.json`` for a whole SentencePiece model: ids equal those of ``TextTokenizer.encode``.

    Difference: text that spells a byte or an unused piece (``<0x41>``) becomes that piece, as in transformers 4.x.
    """
    proto = _parsed(model)
    added = [
        {
            "id": index,
            "content": piece.piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.type != _PIECE.USER_DEFINED,
        }
        for index, piece in enumerate(proto.pieces)
        if piece.type in _ADDED_TYPES
    ]
    bos, unk = SPECIAL_PIECES[BOS], SPECIAL_PIECES[UNK]
    start, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": WORD_MARK, "prepend_scheme": "first", "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, text],
            "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": WORD_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": [piece.piece for piece in proto.pieces].index(unk),
            "vocab": [[piece.piece, piece.score] for piece in proto.pieces],
            "byte_fallback": True,
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json``: the published values, but for the class, and with a template of the chat script.

    The published class ``LlamaTokenizer`` gives wrong ids in transformers 5; the generic one reads ``tokenizer.json``.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": 65536,
        "chat_template": CHAT_TEMPLATE,
    }


def _parsed(model: bytes) -> Any:
    proto = pb.ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as error:  # protobuf's DecodeError, whose module is not ours to import
        raise ValueError(f"not a SentencePiece model ({error})") from None
    return proto
