"""What a run trained, put together: in memory, as model folders with a card, and merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from aqaa_jax import atomic
from aqaa_jax.checkpoint.files import load_model
from aqaa_jax.checkpoint.folder import CONFIG, SPEAKER_MODEL, TEXT_MODEL, write_folder
from aqaa_jax.checkpoint.merge import merge
from aqaa_jax.codec.tokenizer import DualTokenizer
from aqaa_jax.config import to_dict
from aqaa_jax.inference.system import System
from aqaa_jax.parts import abstract, builders
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training import start
from aqaa_jax.training.config import RecipeConfig
from aqaa_jax.training.corpus import text_tokenizer
from aqaa_jax.training.language import DECODER
from aqaa_jax.version import __version__
from aqaa_jax.vocoder.model import Vocoder

Say = Callable[[str], None]
TABLES = ("embedding.table",)  # of decoder and flow: a third of the weights, and the least sensitive
DECODER_STAGES = ("sft1", "sft2", "dpo", "merge")  # each leaves a decoder; the last one in a recipe is its result
CARD = """# The pocket model

A small spoken-question-answering model trained from nothing by aqaa_jax {version}: the modules of the full system
at pocket size.

- **Hears** short English questions of its own domain (sums and differences of 0-12, neighbours of numbers, weekdays
  and months, opposites, capitals, colours, comparisons, repeat after me), optionally with a request to answer slowly,
  quickly, in a high or in a low voice.
- **Answers** with one short sentence, as text and as speech in one synthetic voice.
- **Made of** synthetic speech only (espeak-ng). It has never heard a person: expect little from human recordings, and
  nothing outside of the domain.
- **Weights**: {parameters} parameters in float16 safetensors, embeddings as int8 rows; `config.json` holds the
  configuration, the recipe with its seeds, and the time each stage took.
- **Decoder**: {decoder}.
- **Made by**: `{command}`; measured by `make pocket-eval` (see the README).
"""


def trained_parts(recipe: RecipeConfig, run_dir: Path, stage: str) -> dict[str, Any]:
    """The five parts of a run by name, the decoder as ``stage`` left it. A missing one raises ``FileNotFoundError``."""
    c = recipe.system
    folder = {"decoder": stage}
    return {
        name: load_model(run_dir / folder.get(name, name) / f"{name}.safetensors", abstract(c, name))
        for name in builders(c)
    }


def run_system(recipe: RecipeConfig, run_dir: Path, stage: str) -> System:
    """The system of a run in full precision, with the decoder of ``stage``."""
    c, parts = recipe.system, trained_parts(recipe, run_dir, stage)
    return System(
        config=c,
        vocab=Vocab(c.vocab),
        text=text_tokenizer(recipe, run_dir),
        tokenizer=DualTokenizer.of(c.tokenizer, parts["linguistic"], parts["semantic"]),
        decoder=parts["decoder"],
        vocoder=Vocoder.of(c.vocoder, parts["flow"], parts["hift"]),
    )


def merge_decoders(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """``merge/decoder.safetensors``: the weighted mean of the decoders of sft1, sft2 and dpo."""
    weights = {name: weight for name, weight in to_dict(recipe.merge).items() if weight}
    inputs = [(run_dir / name / DECODER, weight) for name, weight in weights.items()]
    for path, _ in inputs:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; stage {path.parent.name!r} has to run first")
    output = run_dir / "merge" / DECODER
    output.unlink(missing_ok=True)  # whole, but of a sitting that was stopped before the stage was done
    atomic.write_json(run_dir / "merge" / "about.json", merge(inputs, output))
    say(f"[merge] {_mean(recipe)}")


def _mean(recipe: RecipeConfig) -> str:
    return " + ".join(f"{weight:g} × {name}" for name, weight in to_dict(recipe.merge).items() if weight)


def package(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """``model/``, what ``aqaa ask --model`` reads, of the last decoder; after a merge ``sft1/model/`` ... as well."""
    stages = [name for name in DECODER_STAGES if name in recipe.stages]
    if not stages:
        raise ValueError(f"no decoder to package: stages {recipe.stages} have none of {', '.join(DECODER_STAGES)}")
    for name in stages[:-1]:
        _write_folder(recipe, run_dir, name, run_dir / name / "model", say)
    _write_folder(recipe, run_dir, stages[-1], run_dir / "model", say)


def _write_folder(recipe: RecipeConfig, run_dir: Path, stage: str, folder: Path, say: Say) -> None:
    if (folder / CONFIG).exists() and folder != run_dir / "model":
        return  # of a sitting that was stopped
    parts = trained_parts(recipe, run_dir, stage)
    parameters = sum(leaf.size for part in parts.values() for leaf in jax.tree.leaves(part))
    spent = {p.parent.name: atomic.read_json(p) for p in sorted(run_dir.glob("*/done.json"))}
    speaker = run_dir / start.FOLDER / SPEAKER_MODEL
    if speaker.is_file():
        with atomic.written(folder / SPEAKER_MODEL) as part:
            shutil.copyfile(speaker, part)
    command = f"aqaa train --config={recipe.config}"
    decoder = f"the mean of {_mean(recipe)}" if stage == "merge" else f"of stage {stage}"
    write_folder(
        folder,
        recipe.system,
        parts,
        (run_dir / "corpus" / TEXT_MODEL).read_bytes(),
        card=CARD.format(command=command, version=__version__, parameters=f"{parameters:,}", decoder=decoder),
        provenance={
            "version": __version__,
            "command": command,
            "decoder": stage,
            "recipe": {k: v for k, v in to_dict(recipe).items() if k != "system"},
            "stages": spent,
            "start": start.origin(recipe),
        },
        dtype=jnp.float16,
        tables=TABLES,
    )
    say(f"[package] {parameters:,} parameters in {folder}")
