"""A run that begins from a model folder: parts that are kept, and parts that are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aqaa_jax import atomic
from aqaa_jax.checkpoint.files import load_model, write_json
from aqaa_jax.checkpoint.folder import CONFIG, TEXT_MODEL, read_config
from aqaa_jax.config import to_dict
from aqaa_jax.parts import abstract, builders
from aqaa_jax.training.config import RecipeConfig

FILE = "start.safetensors"
TRAINED_BY = {"decoder": "sft"}  # the stage that trains a part on, where it has another name
KEPT_AS = {"decoder": "pretrain"}  # the stage whose result a kept part stands for, where it has another name
SHAPED = ("tokenizer", "vocab", "decoder", "vocoder", "weave")  # what recipe and folder must agree on
HEADLESS = ("linguistic", "semantic")  # the heads these are trained with are in no model folder


def begin(recipe: RecipeConfig, run_dir: Path) -> None:
    """Lay ``run_dir`` out so that the stages of ``recipe`` go on from the model folder ``recipe.start``.

    A part whose stage is in the recipe is where that stage starts; every other part is kept as it is. Raises
    ``FileNotFoundError`` or ``ValueError`` when the folder is not whole, is of another configuration, or has not what a
    stage needs to go on.
    """
    folder = Path(recipe.start)
    theirs, ours = to_dict(read_config(folder)), to_dict(recipe.system)
    differing = [k for k in SHAPED if theirs[k] != ours[k]]
    if differing:
        raise ValueError(
            f"{folder}: its {', '.join(differing)} is not configured as the recipe's; it cannot begin this run"
        )
    stuck = [name for name in ("pretrain", *HEADLESS) if name in recipe.stages]
    if stuck:
        raise ValueError(
            f"stage {stuck[0]!r} cannot go on from a model folder; leave it out of the stages or the start empty"
        )
    made = json.loads((folder / CONFIG).read_text()).get("provenance", {})
    _copy(folder / TEXT_MODEL, run_dir / "corpus" / TEXT_MODEL)
    for name in builders(recipe.system):
        source, stage = folder / f"{name}.safetensors", TRAINED_BY.get(name, name)
        if stage in recipe.stages:
            _copy(source, run_dir / stage / FILE)
        else:
            kept = run_dir / KEPT_AS.get(name, name)
            _copy(source, kept / source.name)
            write_json(kept / "done.json", {"start": recipe.start, "made": made})


def started(recipe: RecipeConfig, run_dir: Path, stage: str, part: str) -> Any | None:
    """The weights that ``stage`` is to go on from, or None."""
    path = run_dir / stage / FILE
    return load_model(path, abstract(recipe.system, part)) if path.exists() else None


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    if not source.is_file():
        raise FileNotFoundError(f"{source}: missing, so {source.parent} is not a (whole) model folder")
    with atomic.written(target) as part:
        part.write_bytes(source.read_bytes())
