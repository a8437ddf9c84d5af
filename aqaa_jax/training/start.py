"""A run that begins from a model folder: parts that are kept, and parts that are trained on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from aqaa_jax import atomic
from aqaa_jax.checkpoint import shards
from aqaa_jax.checkpoint.files import load_model
from aqaa_jax.checkpoint.folder import CONFIG, SPEAKER_MODEL, TEXT_MODEL, read_config
from aqaa_jax.config import to_dict
from aqaa_jax.parts import abstract, builders
from aqaa_jax.training.config import RecipeConfig

FOLDER = "start"  # of a stage: the weights it goes on from; of the run: what no stage trains
TRAINED_BY = {"decoder": "sft1"}  # the stage that trains a part on, where it has another name
KEPT_AS = {"decoder": "pretrain"}  # the stage whose result a kept part stands for, where it has another name
NEW = "pretrain"  # the stage that makes a decoder from nothing: then neither the folder's nor its text pieces are taken
SHAPED = ("tokenizer", "vocab", "decoder", "vocoder", "weave")  # what recipe and folder must agree on
HOW_IT_RUNS = ("dtype", "param_dtype", "max_length", "remat", "scan", "attention")  # of the decoder: free
HEADLESS = ("linguistic", "semantic")  # the heads these are trained with are in no model folder


def begin(recipe: RecipeConfig, run_dir: Path) -> None:
    """Lay ``run_dir`` out so that the stages of ``recipe`` go on from the model folder ``recipe.start``.

    A part whose stage is in the recipe is where that stage starts; every other part is kept as it is. The decoder is
    not taken where ``pretrain`` makes a new one, and how it weaves answers may change where a stage trains it on.
    Raises ``FileNotFoundError`` or ``ValueError`` when the folder is not whole, is of another configuration, or has not
    what a stage needs to go on.
    """
    folder = Path(recipe.start)
    theirs, ours = to_dict(read_config(folder)), to_dict(recipe.system)
    for values in (theirs, ours):
        values["decoder"] = {k: v for k, v in values["decoder"].items() if k not in HOW_IT_RUNS}
    new, trained = NEW in recipe.stages, TRAINED_BY["decoder"] in recipe.stages
    free = ("decoder", "weave") if new else ("weave",) if trained else ()
    differing = [k for k in SHAPED if k not in free and theirs[k] != ours[k]]
    if differing:
        raise ValueError(
            f"{folder}: its {', '.join(differing)} is not configured as the recipe's; it cannot begin this run"
        )
    stuck = [name for name in HEADLESS if name in recipe.stages]
    if stuck:
        raise ValueError(
            f"stage {stuck[0]!r} cannot go on from a model folder; leave it out of the stages or the start empty"
        )
    if not new:
        _bring(folder / TEXT_MODEL, run_dir / "corpus")
    if (folder / SPEAKER_MODEL).is_file():
        _bring(folder / SPEAKER_MODEL, run_dir / FOLDER)
    for name in (part for part in builders(recipe.system) if not (new and part == "decoder")):
        stage = TRAINED_BY.get(name, name)
        kept = stage not in recipe.stages
        target = run_dir / KEPT_AS.get(name, name) if kept else run_dir / stage / FOLDER
        index = folder / f"{name}{shards.INDEX}"
        for file in [*shards.weight_files(folder, name), *([index] if index.is_file() else [])]:
            _bring(file, target)
        if kept:
            atomic.write_json(target / "done.json", {"start": recipe.start})


def origin(recipe: RecipeConfig) -> dict[str, Any]:
    """How the folder that a run begins from was made; nothing for a run from nothing."""
    return json.loads((Path(recipe.start) / CONFIG).read_text()).get("provenance", {}) if recipe.start else {}


def started(recipe: RecipeConfig, run_dir: Path, stage: str, part: str) -> Any | None:
    """The weights that ``stage`` is to go on from, or None."""
    folder = run_dir / stage / FOLDER
    return load_model(folder / f"{part}.safetensors", abstract(recipe.system, part)) if folder.is_dir() else None


def _bring(source: Path, directory: Path) -> None:
    """``source`` in ``directory``: linked, since weights are never changed in place, or copied to another disk."""
    target = directory / source.name
    if target.exists():
        return
    if not source.is_file():
        raise FileNotFoundError(f"{source}: missing, so {source.parent} is not a (whole) model folder")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with atomic.written(target) as part:
            shutil.copyfile(source, part)
