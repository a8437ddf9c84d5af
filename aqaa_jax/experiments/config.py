"""Typed configuration of a sweep: arms, what each is measured by, and the claims that the figures decide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aqaa_jax.config import from_dict, to_dict
from aqaa_jax.recipe.run import USED_BY
from aqaa_jax.training.config import STAGES, RecipeConfig, StageConfig

_FOLDER = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Arm:
    """One way of doing it."""

    change: Mapping[str, Any] = field(default_factory=dict)  # values of the recipe, nested, that are other here
    stages: tuple[str, ...] = ()  # in place of the recipe's
    seeds: int = 0  # 0: as many as the sweep has
    paper: Mapping[str, float] = field(default_factory=dict)  # the published row: metric -> value


@dataclass(frozen=True)
class Claim:
    """``better`` beats each of ``than`` in ``metric``, by ``margin`` if the difference is to mean anything."""

    says: str
    metric: str
    better: str
    than: tuple[str, ...]
    margin: float = 0.05


@dataclass(frozen=True)
class MeasureConfig:
    """What every arm is measured by (``experiments/measures.py``), on what no arm was trained on."""

    kinds: tuple[str, ...] = ("answers",)
    questions: int = 200  # asked per split
    splits: tuple[str, ...] = ("new_voices", "new_questions")
    voice_control: int = 0  # answers: requests for a way of speaking
    tasks: tuple[str, ...] = ("tts",)  # perplexity: of the answers of these tasks
    seed: int = 2024  # of what is asked


@dataclass(frozen=True)
class SweepConfig:
    """Arms times seeds of one recipe.

    ``common`` stages run once and ``seeded`` ones once per seed, with the values of ``recipe``; the others once per arm
    and seed, with the arm's.
    """

    name: str
    config: str  # where these values come from
    recipe: RecipeConfig
    arms: Mapping[str, Arm]
    common: tuple[str, ...] = ("corpus", "tokenize")
    seeded: tuple[str, ...] = ()
    seeds: int = 3
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        shared = (*self.common, *self.seeded)
        for name in shared:
            if name not in self.recipe.stages:
                raise ValueError(f"shared stage {name!r} is not one of {', '.join(self.recipe.stages)}")
        for name, arm in self.arms.items():
            if not _FOLDER.fullmatch(name) or name == "common" or name.startswith("seed-"):
                raise ValueError(f"arm {name!r}; expected a name of letters, digits, dots and dashes for a folder")
            wrong = sorted(key for key in arm.change if _stage_of(key) in shared)
            if wrong:
                raise ValueError(f"arm {name!r} changes {wrong[0]!r}, a value of a stage that all arms share")
        for claim in self.claims:
            missing = [name for name in (claim.better, *claim.than) if name not in self.arms]
            if missing or not claim.than:
                raise ValueError(f"claim {claim.says!r} is of arm {', '.join(missing) or 'none'}; expected known arms")

    def seeds_of(self, arm: str) -> range:
        return range(self.arms[arm].seeds or self.seeds)

    def recipe_of(self, arm: str, seed: int) -> RecipeConfig:
        """The recipe of a cell: the arm's values, and ``seed`` in every stage that is run for it or for its seed."""
        values = _merged(to_dict(self.recipe), self.arms[arm].change)
        if self.arms[arm].stages:
            values["stages"] = list(self.arms[arm].stages)
        return _with_seed(from_dict(RecipeConfig, values), seed, self.common)

    def base(self, seed: int) -> RecipeConfig:
        """The recipe without an arm's changes: of the stages that the arms share."""
        return _with_seed(self.recipe, seed, self.common)


def _with_seed(recipe: RecipeConfig, seed: int, common: tuple[str, ...]) -> RecipeConfig:
    values = to_dict(recipe)
    for name in STAGES:
        if name in common:
            continue
        if isinstance(getattr(recipe, name, None), StageConfig):
            values[name]["loop"]["seed"] = seed
        elif name == "pairs":
            values[name]["seed"] = seed
    return from_dict(RecipeConfig, values)


def _stage_of(key: str) -> str:
    return USED_BY.get(key, key.removesuffix("_mix"))


def _merged(values: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with those of ``change`` in their place, mappings merged key by key."""
    out = dict(values)
    for key, value in change.items():
        known = out.get(key)
        out[key] = _merged(known, value) if isinstance(value, Mapping) and isinstance(known, dict) else value
    return out
