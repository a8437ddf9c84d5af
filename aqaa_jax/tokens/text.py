"""Text to ids and back over a SentencePiece model with the published control and byte ids.

The published ``tokenizer.model`` (Step-Audio-TTS-3B, 74,752 pieces) is used through transformers' fast
Llama tokenizer, which does three things that SentencePiece itself does not; they are done here:
control pieces such as ``<|BOT|>`` are recognised in text; a string start (and only that) gets the word mark
``▁``, so ``human`` after ``<|BOT|>`` is another piece than ``human`` alone; BOS is an option.
Difference: ``encode_span`` (what prompts are built of) never turns text into control or audio ids.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece as spm
from numpy.typing import ArrayLike

from aqaa_jax import atomic
from aqaa_jax.tokens.vocab import BOS, BYTE_START, NUM_SPECIAL, SPECIAL_PIECES, TEXT_PIECES_START, UNK, Vocab, as_ids

WORD_MARK = "▁"
_PROBE = "ａ  b "  # a normaliser, a dummy prefix or trimming would change it
_AUDIO_PIECE = r"<audio_(\d+)>"
_INSIDE_AUDIO_PIECE = re.compile(r"(?<=<)(?=audio_\d+>)")
# The longest piece first, as the fast tokenizer matches; the capture keeps the pieces when splitting.
_ADDED = re.compile("(" + "|".join(map(re.escape, sorted(SPECIAL_PIECES, key=len, reverse=True))) + r"|<audio_\d+>)")


class TextTokenizer:
    """A text tokenizer of one ``Vocab``; ``load`` reads it from a SentencePiece file."""

    def __init__(self, processor: spm.SentencePieceProcessor, vocab: Vocab):
        size = processor.get_piece_size()
        if size > vocab.audio_start and size != vocab.size:
            raise ValueError(
                f"SentencePiece model of {size} pieces; expected up to {vocab.audio_start} or exactly {vocab.size}"
            )
        byte_pieces = [f"<0x{b:02X}>" for b in range(256)]
        for index, piece in enumerate([*SPECIAL_PIECES, *byte_pieces]):
            found = processor.id_to_piece(index) if index < size else None
            if found != piece:
                raise ValueError(f"SentencePiece model has piece {found!r} at id {index}; expected {piece!r}")
        probe = processor.normalize(_PROBE)
        if probe != _PROBE.replace(" ", WORD_MARK):
            raise ValueError(f"SentencePiece model normalises {_PROBE!r} to {probe!r}; expected only marked spaces")
        self._processor = processor
        self._ids = {piece: index for index, piece in enumerate(SPECIAL_PIECES)}
        self.vocab = vocab

    @classmethod
    def load(cls, path: str | Path, vocab: Vocab) -> TextTokenizer:
        """Read a SentencePiece model file.

        Raises ``FileNotFoundError``, or ``ValueError`` if the file is not a model or lacks the published
        control and byte ids.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such SentencePiece file")
        try:
            processor = spm.SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path}: not a SentencePiece model ({error})") from None
        return cls(processor, vocab)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of a whole string as the published fast tokenizer gives them, control and audio pieces included.

        Raises ``ValueError`` on an ``<audio_k>`` outside the vocabulary.
        """
        ids = [BOS] if bos else []
        for index, part in enumerate(_ADDED.split(text)):
            if index % 2:
                ids.append(self._added_id(part))
            elif part:
                at_start = index == 0 and not part.startswith((" ", WORD_MARK))
                ids += self._processor.encode(WORD_MARK + part if at_start else part)
        return ids

    def encode_span(self, text: str) -> list[int]:
        """Ids of text that follows a control piece: no word mark, and only byte and text ids."""
        return [i for part in _INSIDE_AUDIO_PIECE.split(text) for i in self._processor.encode(part)]

    def decode(self, ids: ArrayLike) -> str:
        """The string of ``encode``d ids, BOS left out; undoes the word mark at the start."""
        numbers = [i for i in as_ids(ids).tolist() if i != BOS]
        text = self.decode_span(numbers)
        return text[1:] if text.startswith(" ") else text

    def decode_span(self, ids: ArrayLike) -> str:
        """The string of ids inside a turn. Control and audio ids are written out; broken bytes become U+FFFD."""
        out = bytearray()
        size = self._processor.get_piece_size()
        for index in as_ids(ids).tolist():
            if BYTE_START <= index < TEXT_PIECES_START:
                out.append(index - BYTE_START)
            elif self.vocab.audio_start <= index < self.vocab.size:
                out += f"<audio_{index - self.vocab.audio_start}>".encode()
            elif 0 <= index < size:
                piece = self._processor.id_to_piece(index)
                out += (piece if index < NUM_SPECIAL else piece.replace(WORD_MARK, " ")).encode()
            else:
                out += SPECIAL_PIECES[UNK].encode()
        return out.decode(errors="replace")

    def _added_id(self, piece: str) -> int:
        audio = re.fullmatch(_AUDIO_PIECE, piece)
        if audio is None:
            return self._ids[piece]
        index = self.vocab.audio_start + int(audio[1])
        if index >= self.vocab.size:
            raise ValueError(f"{piece} is id {index}, outside the vocabulary of {self.vocab.size}")
        return index


def train_pocket(texts: Iterable[str], path: str | Path, vocab: Vocab, *, size: int | None = None) -> TextTokenizer:
    """Train a small unigram model with the published control and byte ids, write it to ``path``, load it.

    At most ``size`` pieces in all (default: up to ``audio_start``; fewer if the texts offer fewer). Settings as
    published: identity normaliser, digits split, byte fallback, no dummy prefix. Texts are cut at line ends, so
    that a newline stays the byte 78, a turn's header never merges with its text. The same texts in the
    same order give the same file.
    """
    size = vocab.audio_start if size is None else size
    if not TEXT_PIECES_START < size <= vocab.audio_start:
        raise ValueError(f"size is {size}; expected more than {TEXT_PIECES_START} and at most {vocab.audio_start}")
    lines = [line for text in texts for line in text.splitlines() if line]
    if not lines:
        raise ValueError("no text to train a tokenizer on")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        shuffle_input_sentence=False,
        control_symbols=list(SPECIAL_PIECES[3:]),
        unk_id=UNK,
        bos_id=BOS,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    with atomic.written(path) as part:
        part.write_bytes(model.getvalue())
    return TextTokenizer.load(path, vocab)
