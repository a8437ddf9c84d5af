"""Training the two tokenizers of a recipe: features, stage, codebook, file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.codec.tokenizer import LinguisticTokenizer, SemanticTokenizer
from aqaa_jax.data.phones import phone_inventory
from aqaa_jax.data.speech import Labelled, labelled
from aqaa_jax.dsp import fbank, mel, wav
from aqaa_jax.training import corpus, distributed
from aqaa_jax.training.config import RecipeConfig
from aqaa_jax.training.kmeans import kmeans
from aqaa_jax.training.loop import train
from aqaa_jax.training.stages.linguistic import LinguisticStage, encoded_frames
from aqaa_jax.training.stages.semantic import SemanticStage

Say = Callable[[str], None]
HEARD = ("codec", "voice", "answers")  # the sets the tokenizers learn from


def _data(
    recipe: RecipeConfig,
    run_dir: Path,
    extract: Callable[[np.ndarray], np.ndarray],
    length: int,
    say: Say,
    *,
    with_pitch: bool = False,
) -> tuple[list[Labelled], list[Labelled]]:
    """Training and held-out utterances of at most ``length`` feature frames."""
    sets = {
        name: labelled(corpus.clips(recipe, run_dir, name), extract, with_pitch=with_pitch)
        for name in (*HEARD, "held_out_speech")
    }
    everything = [u for name in HEARD for u in sets[name]]
    usable = [u for u in everything if len(u.features) <= length]
    say(f"{len(usable)} of {len(everything)} utterances have at most {length} frames")
    return usable, [u for u in sets["held_out_speech"] if len(u.features) <= length]


def train_linguistic(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """SANM encoder on phones, then 1,024 centroids of its output: ``linguistic/linguistic.safetensors``."""
    config, stage_config, out = recipe.system.tokenizer.linguistic, recipe.linguistic, run_dir / "linguistic"
    train_set, held_out = _data(
        recipe, run_dir, lambda w: fbank.lfr(wav.energy_norm(w), config), stage_config.length, say
    )
    frames = np.concatenate([u.features[::4] for u in train_set]).astype(np.float32)
    stage = LinguisticStage(
        config=config,
        phones=len(phone_inventory()),
        train=train_set,
        held_out=held_out,
        rows=stage_config.batch,
        length=stage_config.length,
        seed=stage_config.loop.seed,
        cmvn=(-frames.mean(axis=0), 1.0 / np.maximum(frames.std(axis=0), 1e-3)),
    )
    model = distributed.whole(train(stage, out, stage_config.loop, stage_config.optimizer, log=say))
    if not distributed.first():
        return
    vectors = encoded_frames(model, train_set, stage_config.batch, stage_config.length)
    centroids, error = kmeans(vectors, config.codes, seed=stage_config.loop.seed)
    say(f"[linguistic] k-means over {len(vectors)} frames: mean squared distance {error:.4g}")
    tokenizer = LinguisticTokenizer(config, rngs=nnx.Rngs(0))
    tokenizer.encoder = model.encoder
    tokenizer.codebook.table.set_value(jnp.asarray(centroids))
    np.save(out / "phone_logits.npy", np.asarray(jax.nn.log_softmax(model.frame(centroids))))
    save_model(out / "linguistic.safetensors", tokenizer, metadata={"part": "linguistic"})


def train_semantic(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """S3 encoder with its quantiser inside: ``semantic/semantic.safetensors``."""
    config, stage_config, out = recipe.system.tokenizer.semantic, recipe.semantic, run_dir / "semantic"
    stride = 4  # features run at 100 Hz; ``length`` counts 25 Hz frames

    def extract(samples: np.ndarray) -> np.ndarray:
        features = mel.whisper_log_mel(wav.energy_norm(samples), config.num_mels, config.sample_rate)
        return features[: len(features) // stride * stride]

    train_set, held_out = _data(recipe, run_dir, extract, stage_config.length * stride, say, with_pitch=True)
    stage = SemanticStage(
        config=config,
        phones=len(phone_inventory()),
        train=train_set,
        held_out=held_out,
        rows=stage_config.batch,
        length=stage_config.length,
        seed=stage_config.loop.seed,
        steps=stage_config.loop.steps,
    )
    model = distributed.whole(train(stage, out, stage_config.loop, stage_config.optimizer, log=say))
    if not distributed.first():
        return
    tokenizer = SemanticTokenizer(config, rngs=nnx.Rngs(0))
    tokenizer.encoder, tokenizer.codebook = model.encoder, model.codebook
    save_model(out / "semantic.safetensors", tokenizer, metadata={"part": "semantic"})
