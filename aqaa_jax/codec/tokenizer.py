"""Waveforms to the two code streams: linguistic (16.67 per second) and semantic (25 per second)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from aqaa_jax.codec.paraformer import EncoderState, LinguisticEncoder
from aqaa_jax.codec.quantize import Codebook
from aqaa_jax.codec.s3 import SemanticEncoder, count_vectors
from aqaa_jax.config import LinguisticConfig, SemanticConfig, TokenizerConfig
from aqaa_jax.dsp import fbank
from aqaa_jax.dsp.mel import WHISPER_HOP, whisper_log_mel
from aqaa_jax.dsp.wav import energy_norm, resample, trim_silence
from aqaa_jax.nn.stack import apart

PIECE_SECONDS = 30  # semantic features and attention never cross these cuts
SHORTEST_PIECE = 480  # samples; a shorter last piece gives no semantic code
LINGUISTIC_FRAMES = 8192  # most stacked frames in one call: bounds memory, not length
SEMANTIC_FRAMES = 24000


class Codes(NamedTuple):
    """The two streams of one waveform, int32, each within its own codebook."""

    linguistic: Int[np.ndarray, "T"]
    semantic: Int[np.ndarray, "U"]


class LinguisticStream(NamedTuple):
    """One live stream: front end on the host, encoder on the device."""

    frontend: fbank.FbankState
    encoder: EncoderState


class LinguisticTokenizer(nnx.Module):
    """SANM encoder and k-means table."""

    def __init__(self, config: LinguisticConfig, *, rngs: nnx.Rngs):
        self.encoder = LinguisticEncoder(config, rngs=rngs)
        self.codebook = Codebook(config.codes, config.embed, rngs=rngs)
        self.config = config

    def __call__(self, frames_BTM: Float[Array, "B T M"], lengths_B: Int[Array, "B"]) -> Int[Array, "B T"]:
        """Codes of ``dsp.fbank.lfr`` frames; entries beyond a length mean nothing."""
        return self.codebook(self.encoder(self.encoder.normalise(frames_BTM), lengths_B))

    def features(
        self, wav_W: Float[np.ndarray, "W"], rng: np.random.Generator | None = None
    ) -> Float[np.ndarray, "T M"]:
        """Stacked frames of a whole waveform at the config's rate, dithered from ``rng`` if the config says so.

        Raises ``ValueError`` when the config has dither and ``rng`` is missing.
        """
        return fbank.lfr(wav_W, self.config, self._dither(len(wav_W), rng))

    def start(self) -> LinguisticStream:
        """The state of a stream before its first sample."""
        return LinguisticStream(fbank.start(self.config), self.encoder.init_state(1))

    def push(
        self,
        state: LinguisticStream,
        wav_W: Float[np.ndarray, "W"],
        *,
        final: bool = False,
        rng: np.random.Generator | None = None,
    ) -> tuple[Int[np.ndarray, "T"], LinguisticStream]:
        """Codes that a further piece of waveform completes (four per 240 ms), and the new state.

        ``final`` also encodes what is left and returns a fresh state. The codes of all pieces together are those of
        the whole waveform, wherever it is cut.
        """
        c = self.config
        frames, frontend = fbank.push(
            state.frontend,
            wav_W,
            c,
            final=final,
            noise_TW=self._dither(len(state.frontend.samples_W) + len(wav_W), rng),
        )
        encoder, out = state.encoder, [np.zeros(0, np.int32)]
        for i in range(0, len(frames), c.chunk):
            piece = frames[i : i + c.chunk]
            padded = np.pad(piece, ((0, c.chunk - len(piece)), (0, 0)))[None]
            codes_BT, encoder = _stream_codes(self, encoder, padded, np.array([len(piece)], np.int32))
            out.append(np.asarray(codes_BT)[0, : len(piece)])
        return np.concatenate(out), self.start() if final else LinguisticStream(frontend, encoder)

    def _dither(self, samples: int, rng: np.random.Generator | None) -> np.ndarray | None:
        if self.config.dither == 0.0:
            return None
        if rng is None:
            raise ValueError(f"dither is {self.config.dither}: pass a random generator, or set dither to 0")
        window, hop, _ = fbank.sizes(self.config)
        frames = max(0, (samples - window) // hop + 1)
        return rng.standard_normal((frames, window), np.float32) * np.float32(self.config.dither)


class SemanticTokenizer(nnx.Module):
    """Whisper-style encoder and vector quantiser on unit-length vectors."""

    def __init__(self, config: SemanticConfig, *, rngs: nnx.Rngs):
        self.encoder = SemanticEncoder(config, rngs=rngs)
        self.codebook = Codebook(config.codes, config.embed, normalise=True, rngs=rngs)
        self.config = config

    def __call__(self, mel_BTM: Float[Array, "B T M"], lengths_B: Int[Array, "B"]) -> Int[Array, "B U"]:
        """Codes of log-mel pieces of up to 30 s; entries beyond a length mean nothing."""
        return self.codebook(self.encoder(mel_BTM, lengths_B))

    def unrolled(self) -> SemanticTokenizer:
        """The same with the encoder's blocks held apart (``nn.stack.apart``): faster on a CPU, not for checkpoints."""
        copy = jax.tree.map(lambda x: x, self)
        copy.encoder.blocks = apart(self.encoder.blocks, self.config.layers)
        return copy

    def features(self, wav_W: Float[np.ndarray, "W"]) -> list[Float[np.ndarray, "T M"]]:
        """Log-mel of each 30 s piece of a waveform at the config's rate; a last piece under 480 samples is dropped."""
        piece = PIECE_SECONDS * self.config.sample_rate
        cuts = [wav_W[i : i + piece] for i in range(0, len(wav_W), piece)]
        return [
            whisper_log_mel(w, self.config.num_mels, self.config.sample_rate) for w in cuts if len(w) >= SHORTEST_PIECE
        ]


class DualTokenizer(nnx.Module):
    """Both tokenizers on one waveform: the ears of the system."""

    def __init__(
        self,
        config: TokenizerConfig,
        linguistic: LinguisticTokenizer | None = None,
        semantic: SemanticTokenizer | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ):
        if linguistic is None or semantic is None:
            if rngs is None:
                raise ValueError("a DualTokenizer is made from both of its parts or from rngs")
            linguistic = linguistic or LinguisticTokenizer(config.linguistic, rngs=rngs)
            semantic = semantic or SemanticTokenizer(config.semantic, rngs=rngs)
        self.linguistic, self.semantic = linguistic, semantic
        self.config = config

    @classmethod
    def of(cls, config: TokenizerConfig, linguistic: LinguisticTokenizer, semantic: SemanticTokenizer) -> DualTokenizer:
        """The tokenizer of two loaded parts."""
        return cls(config, linguistic, semantic)

    def prepare(
        self, wav_W: Float[np.ndarray, "W"], sample_rate: int, *, trim: bool | None = None
    ) -> Float[np.ndarray, "V"]:
        """Resample to the tokenizers' rate, bring to full level and cut silent edges, as configured.

        ``trim`` says whether to cut, in place of the configuration (upstream cuts voice prompts, not questions).
        Raises ``ValueError`` unless the waveform has one dimension.
        """
        if np.ndim(wav_W) != 1:
            raise ValueError(f"a waveform has one dimension; got shape {np.shape(wav_W)}")
        rate = self.config.linguistic.sample_rate
        wav_W = resample(wav_W, sample_rate, rate)
        wav_W = energy_norm(wav_W) if self.config.energy_norm else wav_W
        return trim_silence(wav_W, rate) if (self.config.trim if trim is None else trim) else wav_W

    def encode(
        self,
        wavs: Sequence[Float[np.ndarray, "W"]],
        sample_rate: int = 16000,
        rng: np.random.Generator | None = None,
        *,
        trim: bool | None = None,
    ) -> list[Codes]:
        """Codes of each waveform (any length, all at ``sample_rate``), in order; too short a one gives none.

        Waveforms are batched by padded length, and each is padded by its own length alone, so what else is in the
        list does not matter. ``rng`` is the source of dither where the config has it; ``trim`` as in ``prepare``.
        """
        prepared = [self.prepare(wav, sample_rate, trim=trim) for wav in wavs]
        linguistic = _run(
            _linguistic_codes,
            self.linguistic,
            [self.linguistic.features(wav, rng) for wav in prepared],
            LINGUISTIC_FRAMES,
            count=lambda frames: frames,
        )
        pieces = [self.semantic.features(wav) for wav in prepared]
        longest = PIECE_SECONDS * self.config.semantic.sample_rate // WHISPER_HOP
        flat = _run(
            _semantic_codes,
            self.semantic,
            [mel for mels in pieces for mel in mels],
            SEMANTIC_FRAMES,
            count=count_vectors,
            longest=longest,
        )
        semantic, at = [], 0
        for mels in pieces:
            semantic.append(np.concatenate([np.zeros(0, np.int32), *flat[at : at + len(mels)]]))
            at += len(mels)
        return [Codes(a, b) for a, b in zip(linguistic, semantic, strict=True)]


# Codes must not depend on an accelerator's reduced-precision default: full float32 products.
@jax.jit
def _linguistic_codes(model: LinguisticTokenizer, frames_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return model(frames_BTM, lengths_B)


@jax.jit
def _semantic_codes(model: SemanticTokenizer, mel_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return model(mel_BTM, lengths_B)


@jax.jit
def _stream_codes(
    model: LinguisticTokenizer, state: EncoderState, frames_BTM: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, EncoderState]:
    with jax.default_matmul_precision("highest"):
        out_BTD, state = model.encoder.stream(state, model.encoder.normalise(frames_BTM), lengths_B)
        return model.codebook(out_BTD), state


def _run(codes_of, model, features: list[np.ndarray], most_frames: int, *, count, longest: int | None = None):
    """Codes of each feature array ``[T, M]``, computed in batches of equal padded length."""
    out = [np.zeros(0, np.int32)] * len(features)
    for rows, frames in _batches([len(f) for f in features], most_frames, longest):
        padded_BTM = np.zeros((len(rows), frames, features[rows[0]].shape[1]), np.float32)
        for i, row in enumerate(rows):
            padded_BTM[i, : len(features[row])] = features[row]
        lengths_B = np.array([len(features[row]) for row in rows], np.int32)
        codes_BT = np.asarray(codes_of(model, jnp.asarray(padded_BTM), jnp.asarray(lengths_B)))
        for i, row in enumerate(rows):
            out[row] = codes_BT[i, : count(len(features[row]))]
    return out


def _batches(lengths: list[int], most_frames: int, longest: int | None) -> Iterator[tuple[list[int], int]]:
    """Rows of equal padded length in groups whose size is a power of two: few shapes, few compilations."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        if length:
            groups.setdefault(_padded_length(length, longest), []).append(row)
    for frames, rows in sorted(groups.items()):
        at, most = 0, max(1, most_frames // frames)
        while at < len(rows):
            size = 1 << (min(most, len(rows) - at).bit_length() - 1)
            yield rows[at : at + size], frames
            at += size


def _padded_length(length: int, longest: int | None) -> int:
    """The next of 16, 24, 32, 48, 64, 96 ...: at most half as much again."""
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size if longest is None else min(size, max(longest, length))
