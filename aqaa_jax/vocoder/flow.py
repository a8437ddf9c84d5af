"""Audio tokens to mel: encoder, length regulator and conditional flow matching.

The published ``MaskedDiffWithXvec`` with ``ConditionalCFM`` of Step-Audio's cosyvoice, batched. Differences: float32
instead of hard bfloat16 casts (also of the time grid); rows of different lengths share a batch without
touching one another; the noise is an argument.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from aqaa_jax.config import FlowConfig
from aqaa_jax.nn.conv import frame_mask, masked
from aqaa_jax.nn.linear import Embedding, Linear
from aqaa_jax.sharding.axes import BATCH, EMBED, FEATURES, FRAMES
from aqaa_jax.sharding.partition import constrain
from aqaa_jax.vocoder.encoder import FlowEncoder
from aqaa_jax.vocoder.regulator import LengthRegulator, interpolate
from aqaa_jax.vocoder.unet import Estimator


class Prompt(NamedTuple):
    """A voice prompt: its tokens stand in front of the target's in the same row, its mel in ``mel_BTM``."""

    token_lengths_B: Int[Array, "B"]
    mel_BTM: Float[Array, "B T M"]
    mel_lengths_B: Int[Array, "B"]


class Condition(NamedTuple):
    """What the estimator sees beside the state: ``mask`` is 1 on real frames."""

    mu_BTM: Float[Array, "B T M"]
    spks_BM: Float[Array, "B M"]
    cond_BTM: Float[Array, "B T M"]
    mask_BT: Float[Array, "B T"]


def mel_frames(num_tokens: int, config: FlowConfig) -> int:
    """Mel frames of ``num_tokens`` woven tokens: seconds times frames per second, rounded down."""
    return int(num_tokens / config.frame_rate * config.mel.sample_rate / config.mel.hop)


def time_grid(steps: int) -> np.ndarray:
    """Cosine grid ``1 - cos(pi/2 k / steps)``, k = 0 ... steps, float32."""
    if steps < 1:
        raise ValueError(f"the flow needs at least one Euler step, got {steps}")
    return 1.0 - np.cos(np.linspace(0.0, 1.0, steps + 1, dtype=np.float32) * np.float32(0.5 * np.pi))


class Flow(nnx.Module):
    """Token ids 0 ... vocab - 1 of the woven stream to log-mel frames."""

    def __init__(self, config: FlowConfig, *, rngs: nnx.Rngs):
        mels, embed = config.mel.num_mels, config.encoder.embed
        self.config = config
        self.embedding = Embedding(config.vocab, embed, rngs=rngs)
        self.speaker = Linear(config.speaker_dim, mels, (FEATURES, FEATURES), rngs=rngs)
        self.encoder = FlowEncoder(config.encoder, rngs=rngs)
        self.project = Linear(embed, mels, (EMBED, FEATURES), rngs=rngs)
        self.regulator = LengthRegulator(mels, config.regulator_layers, rngs=rngs)
        self.estimator = Estimator(config.estimator, mels, rngs=rngs)

    def normalise(self, mel_BTM: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        """Log-mel to the scale the flow works on (``mel_mean``, ``mel_std``); the identity as published."""
        return (mel_BTM - self.config.mel_mean) / self.config.mel_std

    def denormalise(self, x_BTM: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        """The inverse of ``normalise``."""
        return x_BTM * self.config.mel_std + self.config.mel_mean

    def hidden(
        self, tokens_BL: Int[Array, "B L"], token_lengths_B: Int[Array, "B"] | None = None
    ) -> Float[Array, "B L M"]:
        """Token embeddings through the encoder, projected to mel width. Negative ids read row 0, as published."""
        x_BLD = self.embedding(jnp.maximum(tokens_BL, 0))
        mask_BL = None
        if token_lengths_B is not None:
            mask_BL = frame_mask(token_lengths_B, tokens_BL.shape[1])
            x_BLD = masked(x_BLD, mask_BL)
        return self.project(self.encoder(x_BLD, mask_BL))

    def speaker_embedding(self, speaker_BD: Float[Array, "B D"]) -> Float[Array, "B M"]:
        """The speaker vector at unit length, projected to mel width."""
        norm_B1 = jnp.sqrt(jnp.maximum(jnp.sum(speaker_BD**2, axis=-1, keepdims=True), 1e-24))
        return self.speaker(speaker_BD / norm_B1)

    def condition(
        self,
        tokens_BL: Int[Array, "B L"],
        token_lengths_B: Int[Array, "B"],
        mel_lengths_B: Int[Array, "B"],
        speaker_BD: Float[Array, "B D"],
        prompt: Prompt | None = None,
        *,
        frames: int,
    ) -> Condition:
        """Everything the estimator is conditioned on, for ``frames`` (static) padded mel frames.

        ``mel_lengths_B`` counts the frames of the whole row, prompt included; for training it is the length of the
        true mel. A row with an empty prompt (both lengths 0) is a row without one.
        """
        if prompt is None:
            nothing_B = jnp.zeros_like(token_lengths_B)
            blank = jnp.zeros((tokens_BL.shape[0], 0, self.config.mel.num_mels))
            prompt = Prompt(nothing_B, blank, nothing_B)
        h_BLM = self.hidden(tokens_BL, token_lengths_B)
        mask_BT = frame_mask(mel_lengths_B, frames)
        mu_BTM = self.regulator(self._stretch(h_BLM, token_lengths_B, mel_lengths_B, prompt, frames), mask_BT)
        extra = frames - prompt.mel_BTM.shape[1]
        if extra < 0:
            raise ValueError(f"the prompt mel has {prompt.mel_BTM.shape[1]} frames, more than the {frames} of the row")
        cond_BTM = jnp.pad(self.normalise(prompt.mel_BTM), ((0, 0), (0, extra), (0, 0)))
        cond_BTM = masked(cond_BTM, frame_mask(prompt.mel_lengths_B, frames)).astype(mu_BTM.dtype)
        return Condition(mu_BTM, self.speaker_embedding(speaker_BD), cond_BTM, mask_BT)

    def _stretch(
        self, h_BLM: Array, token_lengths_B: Array, mel_lengths_B: Array, prompt: Prompt, frames: int
    ) -> Array:
        frame_T = jnp.arange(frames)
        in_prompt_BT = frame_T < prompt.mel_lengths_B[:, None]
        start_B, rest_B = prompt.token_lengths_B, token_lengths_B - prompt.token_lengths_B
        frame_BT = jnp.broadcast_to(frame_T, in_prompt_BT.shape)
        front_BTM = interpolate(h_BLM, jnp.zeros_like(start_B), start_B, frame_BT, prompt.mel_lengths_B)
        later_BT = frame_BT - prompt.mel_lengths_B[:, None]
        back_BTM = interpolate(h_BLM, start_B, rest_B, later_BT, mel_lengths_B - prompt.mel_lengths_B)
        return jnp.where(in_prompt_BT[..., None], front_BTM, back_BTM)

    def velocity(
        self,
        x_BTM: Float[Array, "B T M"],
        mask_BT: Float[Array, "B T"] | None,
        mu_BTM: Float[Array, "B T M"],
        t_B: Float[Array, "B"],
        spks_BM: Float[Array, "B M"],
        cond_BTM: Float[Array, "B T M"],
        *,
        padding_bug: bool = False,
    ) -> Float[Array, "B T M"]:
        """The estimator's velocity at flow time ``t_B``; ``mask_BT`` None means that no row is padded.

        ``padding_bug=True`` is the published masking, where attention and group norm see padded frames.
        """
        x_BTM, mu_BTM, cond_BTM = (constrain(a, BATCH, FRAMES, None) for a in (x_BTM, mu_BTM, cond_BTM))
        return self.estimator(x_BTM, mask_BT, mu_BTM, t_B, spks_BM, cond_BTM, padding_bug=padding_bug)

    def guided_velocity(
        self, x_BTM: Float[Array, "B T M"], t_B: Float[Array, "B"], condition: Condition, guidance: float
    ) -> Float[Array, "B T M"]:
        """``(1 + w) v(condition) - w v(nothing)``: both in one call of twice the batch."""
        mu_BTM, spks_BM, cond_BTM, mask_BT = condition
        if guidance == 0.0:
            return self.velocity(x_BTM, mask_BT, mu_BTM, t_B, spks_BM, cond_BTM)
        both = [jnp.concatenate([a, jnp.zeros_like(a)]) for a in (mu_BTM, spks_BM, cond_BTM)]
        x2_BTM, mask2_BT, t2_B = (jnp.concatenate([a, a]) for a in (x_BTM, mask_BT, t_B))
        v_BTM, free_BTM = jnp.split(self.velocity(x2_BTM, mask2_BT, both[0], t2_B, both[1], both[2]), 2)
        return (1.0 + guidance) * v_BTM - guidance * free_BTM

    def solve(
        self,
        condition: Condition,
        noise_BTM: Float[Array, "B T M"],
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Float[Array, "B T M"]:
        """Integrate the guided velocity from noise (t = 0) to normalised mel (t = 1): Euler on the cosine grid.

        ``steps`` and ``guidance`` are static; None reads the config. Padded frames come out zero.
        """
        grid = time_grid(self.config.steps if steps is None else steps)
        weight = self.config.guidance if guidance is None else guidance

        def euler(x_BTM: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
            t, dt = at
            t_B = jnp.full(x_BTM.shape[:1], t)
            return x_BTM + dt * self.guided_velocity(x_BTM, t_B, condition, weight), None

        x_BTM = masked(noise_BTM, condition.mask_BT)
        x_BTM, _ = jax.lax.scan(euler, x_BTM, (jnp.asarray(grid[:-1]), jnp.asarray(np.diff(grid))))
        return x_BTM

    def sample(
        self,
        tokens_BL: Int[Array, "B L"],
        token_lengths_B: Int[Array, "B"],
        mel_lengths_B: Int[Array, "B"],
        speaker_BD: Float[Array, "B D"],
        noise_BTM: Float[Array, "B T M"],
        prompt: Prompt | None = None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Float[Array, "B T M"]:
        """Log-mel of the whole row, prompt frames included and first; the caller cuts them off."""
        frames = noise_BTM.shape[1]
        condition = self.condition(tokens_BL, token_lengths_B, mel_lengths_B, speaker_BD, prompt, frames=frames)
        x_BTM = self.solve(condition, noise_BTM, steps=steps, guidance=guidance)
        return masked(self.denormalise(x_BTM), condition.mask_BT)
