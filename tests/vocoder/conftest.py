"""Vocoder parts of toy size with every weight random: a zero bias would hide a leak of padding."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.config import EstimatorConfig, FlowConfig, FlowEncoderConfig, HiftConfig, MelConfig, VocoderConfig
from aqaa_jax.vocoder.flow import Flow, Prompt
from aqaa_jax.vocoder.hift import Hift

MELS = 8
FLOW = FlowConfig(
    vocab=40,
    speaker_dim=6,
    mel=MelConfig(num_mels=MELS),
    encoder=FlowEncoderConfig(embed=16, heads=2, mlp=32, layers=2),
    regulator_layers=2,
    estimator=EstimatorConfig(channels=(16, 16), heads=2, head_dim=8, blocks=1, mid_blocks=2),
    steps=2,
)
HIFT = HiftConfig(
    num_mels=MELS,
    channels=16,
    f0_channels=8,
    f0_layers=2,
    harmonics=3,
    resblock_kernels=(3, 5),
    resblock_dilations=((1, 3), (1, 2)),
    source_kernels=(3, 3),
    source_dilations=((1,), (2,)),
)
VOCODER = VocoderConfig(FLOW, HIFT)


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def randomised(model, scale=0.1):
    """``model`` with noise added to every weight."""
    leaves, tree = jax.tree.flatten(model)
    return jax.tree.unflatten(tree, [leaf + scale * array(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


def flow() -> Flow:
    return randomised(Flow(FLOW, rngs=nnx.Rngs(0)))


def hift() -> Hift:
    return randomised(Hift(HIFT, rngs=nnx.Rngs(1)), scale=0.05)


def flow_inputs(rows=4):
    """Tokens, lengths, speaker, noise and prompt of a padded batch; row 0 is full, row 1 has no prompt."""
    rng = np.random.default_rng(0)
    token_lengths = np.array([12, 7, 9, 10])[:rows]
    mel_lengths = np.array([23, 14, 17, 19])[:rows]
    prompt = Prompt(np.array([4, 0, 3, 5])[:rows], array(rows, 7, MELS, seed=1), np.array([7, 0, 5, 6])[:rows])
    tokens = rng.integers(0, FLOW.vocab, (rows, 12)).astype(np.int32)
    return tokens, token_lengths, mel_lengths, array(rows, 6, seed=2), array(rows, 23, MELS, seed=3), prompt


@pytest.fixture(scope="session")
def tiny():
    """This module: fixtures reach it under every import mode of pytest."""
    return sys.modules[__name__]
