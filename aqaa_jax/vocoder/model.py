"""The vocoder as a whole: audio tokens to waveforms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from aqaa_jax.config import VocoderConfig
from aqaa_jax.vocoder.flow import Flow, Prompt, mel_frames
from aqaa_jax.vocoder.hift import Hift


class Vocoder(nnx.Module):
    """Flow and HiFT; ``synthesize`` is the host's door, the parts can be called under any ``jax.jit``."""

    def __init__(
        self,
        config: VocoderConfig,
        *,
        rngs: nnx.Rngs | None = None,
        flow: Flow | None = None,
        hift: Hift | None = None,
    ):
        """Builds both parts from ``rngs``, or takes parts that exist."""
        if flow is None or hift is None:
            if rngs is None:
                raise ValueError("a Vocoder is made from both of its parts or from rngs")
            flow = flow or Flow(config.flow, rngs=rngs)
            hift = hift or Hift(config.hift, rngs=rngs)
        mel, hift_config = config.flow.mel, config.hift
        have = (mel.sample_rate, mel.num_mels, mel.hop)
        want = (hift_config.sample_rate, hift_config.num_mels, hift.hop)
        if have != want:
            raise ValueError(f"flow makes (rate, bins, hop) {have}, HiFT reads {want}")
        self.config, self.flow, self.hift = config, flow, hift

    @classmethod
    def of(cls, config: VocoderConfig, flow: Flow, hift: Hift) -> Vocoder:
        """A vocoder of two models that exist already (loaded, real or abstract)."""
        return cls(config, flow=flow, hift=hift)

    def synthesize(
        self,
        tokens: Sequence[np.ndarray],
        prompt_tokens: np.ndarray | None = None,
        prompt_mel: Float[np.ndarray, "T M"] | None = None,
        speaker: Float[np.ndarray, "D"] | None = None,
        *,
        key: jax.Array,
    ) -> list[Float[np.ndarray, "W"]]:
        """One float32 waveform per row of woven ids (0 ... vocab - 1), at ``config.hift.sample_rate``.

        A voice prompt (ids and their log-mel, of any durations) and a speaker vector serve every row; without a
        speaker the zero vector is used. Rows are padded to a few bucket sizes, so that a new length rarely
        compiles anew; padding changes no sample beyond rounding. The same key and place in the list give the same
        waveform. A row too short for one mel frame gives an empty waveform. Raises ``ValueError`` for an id out
        of range or half a prompt.
        """
        if (prompt_tokens is None) != (prompt_mel is None):
            raise ValueError("a voice prompt needs both prompt_tokens and prompt_mel")
        flow = self.config.flow
        front = np.zeros(0, np.int32) if prompt_tokens is None else _checked(prompt_tokens, flow.vocab)
        front_mel = np.zeros((0, flow.mel.num_mels)) if prompt_mel is None else np.asarray(prompt_mel)
        rows = [_checked(row, flow.vocab) for row in tokens]
        lengths = np.array([mel_frames(len(row), flow) for row in rows], np.int32)
        if not lengths.any():
            return [np.zeros(0, np.float32) for _ in rows]
        ids = _pad([np.concatenate([front, row]) for row in rows], bucket(len(front) + max(map(len, rows))))
        token_lengths = np.array([len(front) + len(row) for row in rows], np.int32)
        frames = bucket(len(front_mel) + int(lengths.max()))
        prompt = _prompt(len(front), front_mel, len(rows), frames)
        vector = np.zeros(flow.speaker_dim) if speaker is None else np.asarray(speaker)
        speakers = np.tile(vector.astype(np.float32), (len(rows), 1))
        mel_keys, wav_keys = (_row_keys(k, len(rows)) for k in jax.random.split(key))
        mel_lengths = lengths + len(front_mel)
        mel = np.asarray(_mel(self.flow, ids, token_lengths, mel_lengths, speakers, prompt, mel_keys))
        mels = [m[len(front_mel) : len(front_mel) + n] for m, n in zip(mel, lengths, strict=True)]
        wav = np.asarray(_wav(self.hift, _pad(mels, bucket(int(lengths.max()))), lengths, wav_keys))
        return [w[: n * self.hift.hop] for w, n in zip(wav, lengths, strict=True)]


def bucket(size: int) -> int:
    """The padded size of ``size``: multiples of 32 up to 512, then of an eighth of the power of two below."""
    step = max(32, 1 << max(0, (size - 1).bit_length() - 4))
    return max(step, -(-size // step) * step)


@jax.jit
def _mel(
    flow: Flow, ids: Array, token_lengths: Array, mel_lengths: Array, speakers: Array, prompt: Prompt, keys: Array
):
    frames, mels = prompt.mel_BTM.shape[1], flow.config.mel.num_mels
    noise = jax.vmap(partial(_frame_noise, frames=frames, shape=(mels,)))(keys)
    noise *= flow.config.temperature
    return flow.sample(ids, token_lengths, mel_lengths, speakers, noise, prompt)


@jax.jit
def _wav(hift: Hift, mel: Array, lengths: Array, keys: Array) -> Array:
    sines, frames = hift.config.harmonics + 1, mel.shape[1]
    keys = jax.vmap(jax.random.split)(keys)
    phase = jax.vmap(lambda k: jax.random.uniform(k, (sines,), minval=-jnp.pi, maxval=jnp.pi))(keys[:, 0])
    noise = jax.vmap(partial(_frame_noise, frames=frames, shape=(hift.hop, sines)))(keys[:, 1])
    return hift(mel, phase, noise.reshape(len(mel), -1, sines), lengths_B=lengths)[0]


def _row_keys(key: Array, rows: int) -> Array:
    """One key per place in the batch, the same whatever the number of rows."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))


def _frame_noise(key: Array, frames: int, shape: tuple[int, ...]) -> Array:
    """Normal noise drawn frame by frame: a frame's noise does not depend on how far the row is padded."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(frames))
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def _prompt(num_tokens: int, mel: np.ndarray, rows: int, frames: int) -> Prompt:
    padded = np.zeros((rows, frames, mel.shape[1]), np.float32)
    padded[:, : len(mel)] = mel
    lengths = (jnp.full(rows, n, jnp.int32) for n in (num_tokens, len(mel)))
    return Prompt(next(lengths), jnp.asarray(padded), next(lengths))


def _checked(ids: np.ndarray, vocab: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(f"a row of audio tokens is a list of integers, got {ids.dtype} of shape {ids.shape}")
    outside = ids[(ids < 0) | (ids >= vocab)]
    if outside.size:
        raise ValueError(f"audio token {outside[0]} is outside 0 ... {vocab - 1}")
    return ids.astype(np.int32)


def _pad(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    out = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for padded, row in zip(out, rows, strict=True):
        padded[: len(row)] = row
    return out
