"""The last stage: everything a run trained, as one model folder with a card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from aqaa_jax import atomic
from aqaa_jax.checkpoint.files import load_model
from aqaa_jax.checkpoint.folder import SPEAKER_MODEL, TEXT_MODEL, write_folder
from aqaa_jax.config import to_dict
from aqaa_jax.parts import abstract, builders
from aqaa_jax.training import start
from aqaa_jax.training.config import RecipeConfig
from aqaa_jax.version import __version__

TABLES = ("embedding.table",)  # of decoder and flow: a third of the weights, and the least sensitive
STAGE_OF = {"decoder": "sft"}  # parts whose last stage has another name
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
- **Made by**: `{command}`; measured by `make pocket-eval` (see the README).
"""


def package(recipe: RecipeConfig, run_dir: Path, say: Callable[[str], None]) -> None:
    """``model/``: the folder that ``aqaa ask --model`` reads."""
    c = recipe.system
    parts = {
        name: load_model(run_dir / STAGE_OF.get(name, name) / f"{name}.safetensors", abstract(c, name))
        for name in builders(c)
    }
    parameters = sum(leaf.size for part in parts.values() for leaf in jax.tree.leaves(part))
    spent = {p.parent.name: json.loads(p.read_text()) for p in sorted(run_dir.glob("*/done.json"))}
    folder, command = run_dir / "model", f"aqaa train --config=configs/pocket.py:{recipe.name}"
    speaker = run_dir / start.FOLDER / SPEAKER_MODEL
    if speaker.is_file():
        with atomic.written(folder / SPEAKER_MODEL) as part:
            shutil.copyfile(speaker, part)
    write_folder(
        folder,
        c,
        parts,
        (run_dir / "corpus" / TEXT_MODEL).read_bytes(),
        card=CARD.format(command=command, version=__version__, parameters=f"{parameters:,}"),
        provenance={
            "version": __version__,
            "command": command,
            "recipe": {k: v for k, v in to_dict(recipe).items() if k != "system"},
            "stages": spent,
            "start": start.origin(recipe),
        },
        dtype=jnp.float16,
        tables=TABLES,
    )
    say(f"[package] {parameters:,} parameters in {folder}")
