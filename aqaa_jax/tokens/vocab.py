"""Every id of the decoder's vocabulary: control, byte, text, linguistic and semantic.

The published layout (Step-Audio's ``tokenizer.model`` and ``tokenizer.py``)::

    0 .. 67                         control pieces (``SPECIAL_PIECES``)
    68 .. 323                       the 256 bytes
    324 .. audio_start - 1          text pieces                       (published audio_start: 65536)
    audio_start + c                 linguistic code c, c < linguistic               (1024 codes)
    audio_start + linguistic + c    semantic code c, c < semantic                   (4096 codes)
    the rest, up to size            never produced

A small vocabulary (the pocket model) keeps 0 .. 323 and moves ``audio_start`` down.
NumPy only: no device is involved in anything about ids.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

from aqaa_jax.config import VocabConfig

UNK = PAD = 0
BOS = 1
EOS = 2  # SentencePiece's </s>; the models end with EOT
EOT = 3
BOT = 4
CALL_START, CALL_END = 5, 6
THINK_START, THINK_END = 7, 8
IMAGE_START, IMAGE_END = 9, 10
META_START, META_END = 11, 12
AUDIO_START, AUDIO_END = 31, 32
TEXT_START, TEXT_END = 33, 34
TTS, ASR, TQAA, AQTA = 35, 36, 37, 38
NUM_SPECIAL = 68
BYTE_START = NUM_SPECIAL
TEXT_PIECES_START = BYTE_START + 256

SPECIAL_PIECES: tuple[str, ...] = (
    *("<unk>", "<s>", "</s>", "<|EOT|>", "<|BOT|>", "<|CALL_START|>", "<|CALL_END|>"),
    *("<|THINK_START|>", "<|THINK_END|>", "<|IMG_START|>", "<|IMG_END|>", "<|META_START|>", "<|META_END|>"),
    *("<im_patch>", "<im_start>", "<im_end>", "<dream>", "<dream_start>", "<dream_end>"),
    *("<|MASK_1e69f|>", "<|UNMASK_1e69f|>", "<video_start>", "<video_end>", "<row_patch>", "<column_patch>"),
    "<|SEP_1e69f|>",
    *(f"<user_defined_symbol_{n}>" for n in range(22, 27)),
    *("<audio_start>", "<audio_end>", "<text_start>", "<text_end>", "<|TTS|>", "<|ASR|>", "<|TQAA|>", "<|AQTA|>"),
    *(f"<user_defined_symbol_{n}>" for n in range(35, 64)),
)


class TokenClass(IntEnum):
    """What an id is. The first classes are the ones an answer is made of."""

    TEXT = 0  # bytes and text pieces
    LINGUISTIC = 1
    SEMANTIC = 2
    AUDIO_START = 3
    AUDIO_END = 4
    TEXT_START = 5
    TEXT_END = 6
    EOT = 7
    CONTROL = 8  # any other control id
    UNUSED = 9  # inside the vocabulary, without a meaning


class Vocab:
    """The id layout of one ``VocabConfig``. Raises ``ValueError`` if the config leaves no room for a part."""

    def __init__(self, config: VocabConfig):
        if config.audio_start < TEXT_PIECES_START:
            raise ValueError(f"audio_start is {config.audio_start}; expected at least {TEXT_PIECES_START}")
        if config.linguistic < 1 or config.semantic < 1:
            raise ValueError(f"codebooks of {config.linguistic} and {config.semantic} codes; expected at least 1 each")
        self.size = config.size
        self.audio_start = config.audio_start
        self.linguistic = config.linguistic
        self.semantic = config.semantic
        self.semantic_start = config.audio_start + config.linguistic
        self.audio_end = self.semantic_start + config.semantic  # one past the last audio id
        if self.audio_end > config.size:
            raise ValueError(f"vocabulary size is {config.size}; the audio ids need {self.audio_end}")
        self.classes = self._class_table()  # TokenClass of every id: int32, shape (size,), read-only

    @property
    def audio(self) -> int:
        """Number of audio ids: the size of the vocoder's embedding (published: 5120)."""
        return self.linguistic + self.semantic

    def linguistic_ids(self, codes: ArrayLike) -> np.ndarray:
        """Linguistic codes to ids, int32. Raises ``ValueError`` on a code outside the codebook."""
        return _shifted(codes, 0, self.linguistic, self.audio_start, "linguistic code")

    def semantic_ids(self, codes: ArrayLike) -> np.ndarray:
        """Semantic codes to ids, int32. Raises ``ValueError`` on a code outside the codebook."""
        return _shifted(codes, 0, self.semantic, self.semantic_start, "semantic code")

    def linguistic_codes(self, ids: ArrayLike) -> np.ndarray:
        """Ids to linguistic codes, int32. Raises ``ValueError`` on any other id."""
        return _shifted(ids, self.audio_start, self.semantic_start, -self.audio_start, "linguistic id")

    def semantic_codes(self, ids: ArrayLike) -> np.ndarray:
        """Ids to semantic codes, int32. Raises ``ValueError`` on any other id."""
        return _shifted(ids, self.semantic_start, self.audio_end, -self.semantic_start, "semantic id")

    def vocoder_codes(self, ids: ArrayLike) -> np.ndarray:
        """Woven audio ids to rows of the vocoder's one embedding: 0 .. audio - 1 (``<audio_k>``'s k)."""
        return _shifted(ids, self.audio_start, self.audio_end, -self.audio_start, "audio id")

    def from_vocoder_codes(self, codes: ArrayLike) -> np.ndarray:
        """The inverse of ``vocoder_codes``."""
        return _shifted(codes, 0, self.audio, self.audio_start, "vocoder code")

    def _class_table(self) -> np.ndarray:
        table = np.full(self.size, TokenClass.UNUSED, np.int32)
        table[:NUM_SPECIAL] = TokenClass.CONTROL
        table[BYTE_START : self.audio_start] = TokenClass.TEXT
        table[self.audio_start : self.semantic_start] = TokenClass.LINGUISTIC
        table[self.semantic_start : self.audio_end] = TokenClass.SEMANTIC
        table[EOT] = TokenClass.EOT
        table[AUDIO_START], table[AUDIO_END] = TokenClass.AUDIO_START, TokenClass.AUDIO_END
        table[TEXT_START], table[TEXT_END] = TokenClass.TEXT_START, TokenClass.TEXT_END
        table.setflags(write=False)
        return table

    def classify(self, ids: ArrayLike) -> np.ndarray:
        """``TokenClass`` of each id, int32. An id outside the vocabulary is ``UNUSED``; nothing raises."""
        ids = as_ids(ids)
        inside = (ids >= 0) & (ids < self.size)
        return np.where(inside, self.classes[np.where(inside, ids, 0)], np.int32(TokenClass.UNUSED))

    def is_audio(self, ids: ArrayLike) -> np.ndarray:
        """True where an id is a linguistic or semantic id (the paper's audio vocabulary A)."""
        ids = as_ids(ids)
        return (ids >= self.audio_start) & (ids < self.audio_end)


def as_ids(values: ArrayLike) -> np.ndarray:
    """``values`` as an int64 array; an empty list is fine. Raises ``ValueError`` on non-integers."""
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"ids have dtype {array.dtype}; expected integers")
    return array.astype(np.int64)


def _shifted(values: ArrayLike, low: int, high: int, shift: int, name: str) -> np.ndarray:
    array = as_ids(values)
    wrong = array[(array < low) | (array >= high)]
    if wrong.size:
        raise ValueError(f"{name} {int(wrong.flat[0])} is outside {low} .. {high - 1}")
    return (array + shift).astype(np.int32)
