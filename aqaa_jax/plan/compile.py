"""The training step of a stage, compiled for devices that are not here."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
from jax.sharding import Mesh, NamedSharding

from aqaa_jax.config import DecoderConfig, ShardingConfig, VocabConfig
from aqaa_jax.plan import batches
from aqaa_jax.plan.topology import Topology
from aqaa_jax.sharding import mesh as meshes
from aqaa_jax.sharding import partition, rules
from aqaa_jax.sharding.axes import BATCH
from aqaa_jax.training.config import PreferenceConfig, StageConfig
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.stages.language import LanguageStage
from aqaa_jax.training.stages.preference import PreferenceStage
from aqaa_jax.training.state import TrainState, init_state
from aqaa_jax.training.step import step_of

GIB = 2**30
STAGES = ("pretrain", "sft1", "sft2", "dpo")
_OUT = (
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available \w+ \(([\d.]+)([KMGT])\)"),
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
)


class DoesNotFit(ValueError):
    """The compiler ran out of device memory; ``needed`` and ``available`` in GiB, as it says them."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"needs {needed:.2f} GiB of device memory, {available:.2f} GiB are available")
        self.needed, self.available = needed, available


@dataclass(frozen=True)
class Job:
    """What is planned: a stage of training of a decoder as its config says, and the compiler's options."""

    decoder: DecoderConfig
    vocab: VocabConfig
    config: StageConfig = field(default_factory=StageConfig)  # batch: rows of a step, length: tokens of a row
    stage: str = "sft1"
    flags: Mapping[str, str] = field(default_factory=dict)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)

    @property
    def sharding(self) -> ShardingConfig:
        return self.config.loop.sharding


@dataclass(frozen=True)
class Program:
    """A compiled step, and how long the compiler took (seconds)."""

    compiled: Any
    mesh: Mesh
    lowering: float
    compiling: float


def compile_step(job: Job, target: Topology) -> Program:
    """Compile the step of ``job`` for ``target``.

    Raises ``DoesNotFit``, or ``ValueError`` for a stage without a plan or a mesh that does not suit devices or shapes.
    """
    began = time.monotonic()
    lowered, mesh = lowered_step(job, target)
    lowering, began = time.monotonic() - began, time.monotonic()
    with jax.set_mesh(mesh):
        compiled = compiled_or_reason(lowered, job.flags)
    return Program(compiled, mesh, lowering, time.monotonic() - began)


def lowered_step(job: Job, target: Topology) -> tuple[Any, Mesh]:
    """The step of ``job`` as the compiler gets it, and its mesh. Raises ``ValueError`` as ``compile_step``."""
    mesh, table = meshes.make_mesh(job.sharding.mesh, target.devices), rules.rules_of(job.sharding)
    with jax.set_mesh(mesh), partition.partitioning(mesh, table):
        init, step, places = parts_of(job, mesh, table)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = placed(jax.eval_shape(init, key), places)
        batch = batches.abstract(job.stage, job.config.batch, job.config.length, mesh, table)
        return step.lower(state, batch, placed(key, everywhere(mesh, table))), mesh


def state_gib(job: Job, target: Topology) -> float:
    """Of a device: its pieces of weights and optimizer state. Nothing is compiled."""
    mesh, table = meshes.make_mesh(job.sharding.mesh, target.devices), rules.rules_of(job.sharding)
    init, _, places = parts_of(job, mesh, table)
    state = jax.tree.leaves(placed(jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0))), places))
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in state) / GIB


def stage_of(job: Job) -> Any:
    """The stage of ``job``, as the trainer makes it but without data. Raises ``ValueError`` for an unknown one."""
    nothing = cast(Any, None)  # the loss reads no data of the stage's own
    if job.stage not in STAGES:
        raise ValueError(f"stage is {job.stage!r}; expected one of {', '.join(STAGES)}")
    if job.stage == "dpo":
        return PreferenceStage("dpo", job.decoder, job.preference, nothing, job.config.head_chunk)
    return LanguageStage(job.stage, job.decoder, job.vocab, nothing, head_chunk=job.config.head_chunk)


def parts_of(job: Job, mesh: Mesh, table: rules.Rules) -> tuple[Any, Any, Any]:
    """``init(key) -> state``, the jitted ``step`` and the shardings of the state: all as the trainer has them."""
    stage, loop = stage_of(job), job.config.loop
    optimizer = make_optimizer(job.config.optimizer, loop.steps)

    def init(key: jax.Array) -> TrainState:
        return init_state(stage.init(key), optimizer, ema=loop.ema_decay > 0)

    state = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    places = partition.state_shardings(state, state.model, mesh, table)
    return init, step_of(stage, loop, optimizer, places, frozen=job.config.optimizer.frozen), places


def everywhere(mesh: Mesh, table: rules.Rules) -> NamedSharding:
    """The sharding of a single value that every device has."""
    return NamedSharding(mesh, partition.to_spec((), (), mesh, table, name="key"))


def compiled_or_reason(lowered: Any, flags: Mapping[str, str]) -> Any:
    """``lowered`` compiled with ``flags``. Raises ``DoesNotFit`` when the device's memory is too small for it."""
    try:
        return lowered.compile(compiler_options=dict(flags) or None)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        for pattern in _OUT:
            if found := pattern.search(text):
                raise DoesNotFit(_gib(*found.groups()[:2]), _gib(*found.groups()[2:])) from None
        raise ValueError(f"the compiler says: {text.strip().splitlines()[0]}") from error


def _gib(number: str, unit: str) -> float:
    return float(number) * {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}[unit]


def placed(tree: Any, places: Any) -> Any:
    """Shapes with their shardings."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)


def batch_parts(sharding: ShardingConfig, devices: Sequence[Any]) -> int:
    """Into how many parts the rows of a batch are split; a batch has at least as many rows."""
    mesh = meshes.make_mesh(sharding.mesh, devices)
    with partition.partitioning(mesh, rules.rules_of(sharding)):
        return math.prod(mesh.shape[axis] for axis in partition.mesh_axes(BATCH))
