"""Training the vocoder of a recipe: tokens to mel, then mel to waveform, in the answer voice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.config import MelConfig
from aqaa_jax.data.corpus import TAIL_SECONDS
from aqaa_jax.data.tasks import load_audio
from aqaa_jax.dsp import mel as mels
from aqaa_jax.dsp import pitch, wav
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training import corpus, distributed
from aqaa_jax.training.config import RecipeConfig
from aqaa_jax.training.language import codebook_rows
from aqaa_jax.training.loop import train
from aqaa_jax.training.stages.flow import FlowStage, TokenMel
from aqaa_jax.training.stages.hift import HiftStage, MelWav
from aqaa_jax.training.start import started

Say = Callable[[str], None]
SPOKEN = ("answers", "voice")
HELD_OUT_EVERY = 50  # every 50th utterance watches the vocoder


def _waveforms(recipe: RecipeConfig, run_dir: Path, name: str) -> list[np.ndarray]:
    """22.05 kHz waveforms of a set at the level the tokenizers see (peak 0.999), a little silence behind."""
    tail = np.zeros(round(TAIL_SECONDS * 22050), np.float32)
    clips = corpus.clips(recipe, run_dir, name)
    return [wav.energy_norm(np.concatenate([clips[i].wavs[22050], tail])) for i in range(len(clips))]


def _split(items: list) -> tuple[list, list]:
    held_out = items[::HELD_OUT_EVERY]
    return [x for i, x in enumerate(items) if i % HELD_OUT_EVERY], held_out


def train_flow(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """``flow/flow.safetensors``: flow matching with a pull of mu towards the mel (``recipe.prior_weight``)."""
    config, stage_config = recipe.system.vocoder.flow, recipe.flow
    vocab, items = Vocab(recipe.system.vocab), []
    for name in SPOKEN:
        audio = load_audio(run_dir / "tokenize" / f"{name}.npz")
        for ids, waveform in zip(audio, _waveforms(recipe, run_dir, name), strict=True):
            items.append(TokenMel(vocab.vocoder_codes(ids), mels.vocoder_mel(waveform, config.mel)))
    train_set, held_out = _split(items)
    first = started(recipe, run_dir, "flow", "flow")
    stage = FlowStage(
        config=config,
        train=train_set,
        held_out=held_out,
        rows=stage_config.batch,
        length=stage_config.length,
        seed=stage_config.loop.seed,
        token_rows=codebook_rows(run_dir, config.encoder.embed) if first is None else None,
        weights={"velocity": 1.0, "prior": recipe.prior_weight},
    )
    model = distributed.whole(
        train(stage, run_dir / "flow", stage_config.loop, stage_config.optimizer, start=first, log=say)
    )
    if distributed.first():
        save_model(run_dir / "flow" / "flow.safetensors", model, metadata={"part": "flow"})


def _mel_wav(waveform: np.ndarray, config: MelConfig) -> MelWav:
    mel = mels.vocoder_mel(waveform, config)
    return MelWav(mel, pitch.f0(waveform, config), waveform[: len(mel) * config.hop])


def train_hift(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """``hift/hift.safetensors``: on true mels."""
    config, stage_config = recipe.system.vocoder.flow.mel, recipe.hift
    items = [_mel_wav(w, config) for name in SPOKEN for w in _waveforms(recipe, run_dir, name)]
    train_set, held_out = _split([x for x in items if len(x.mel) > stage_config.length])
    stage = HiftStage(
        config=recipe.system.vocoder.hift,
        mel=config,
        train=train_set,
        held_out=held_out,
        rows=stage_config.batch,
        length=stage_config.length,
        seed=stage_config.loop.seed,
    )
    first = started(recipe, run_dir, "hift", "hift")
    model = distributed.whole(
        train(stage, run_dir / "hift", stage_config.loop, stage_config.optimizer, start=first, log=say)
    )
    if distributed.first():
        save_model(run_dir / "hift" / "hift.safetensors", model, metadata={"part": "hift"})
