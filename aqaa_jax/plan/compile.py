"""The training step of a stage, compiled for devices that are not here."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from aqaa_jax.config import DecoderConfig, ShardingConfig, VocabConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.plan.topology import Topology
from aqaa_jax.sharding import mesh as meshes
from aqaa_jax.sharding import partition, rules
from aqaa_jax.sharding.axes import BATCH, LENGTH
from aqaa_jax.training.config import OptimizerConfig
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.stages.language import LanguageStage
from aqaa_jax.training.state import init_state
from aqaa_jax.training.step import make_train_step

GIB = 2**30
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
    """What is planned: a stage of training of a decoder, a batch, a mesh, and the compiler's options."""

    decoder: DecoderConfig
    vocab: VocabConfig
    sharding: ShardingConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    stage: str = "sft"
    batch: int = 1024  # rows of a step
    length: int = 4096  # tokens of a row
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A compiled step, and how long the compiler took (seconds)."""

    compiled: Any
    mesh: Mesh
    lowering: float
    compiling: float


def compile_step(job: Job, target: Topology) -> Program:
    """Compile the step of ``job`` for ``target``.

    Raises ``DoesNotFit``, or ``ValueError`` for a mesh that does not suit the devices or the shapes.
    """
    mesh, table = meshes.make_mesh(job.sharding.mesh, target.devices), rules.rules_of(job.sharding)
    stage = LanguageStage(job.stage, job.decoder, job.vocab, cast(Any, None), cast(Any, None), seed=0)
    optimizer = make_optimizer(job.optimizer, steps=1000)
    step = make_train_step(stage.loss, stage.weights, optimizer, settle=stage.settle)
    began = time.monotonic()
    with jax.set_mesh(mesh), partition.partitioning(mesh, table):
        state = jax.eval_shape(lambda: init_state(Decoder(job.decoder, rngs=nnx.Rngs(0)), optimizer, ema=False))
        key = jax.eval_shape(lambda: jax.random.key(0))
        lowered = step.lower(_placed(state, mesh, table), _batch(job, mesh, table), _placed(key, mesh, table))
        lowering, began = time.monotonic() - began, time.monotonic()
        compiled = compiled_or_reason(lowered, job.flags)
    return Program(compiled, mesh, lowering, time.monotonic() - began)


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


def _placed(tree: Any, mesh: Mesh, table: rules.Rules) -> Any:
    """Shapes with the shardings of their declared axes; what declares none is on every device."""

    def one(leaf: Any) -> Any:
        variable = isinstance(leaf, nnx.Variable)
        value = leaf.get_value() if variable else leaf
        axes = leaf.get_metadata().get("axes") if variable else None
        spec = partition.to_spec(axes or (None,) * value.ndim, value.shape, mesh, table, name="state")
        value = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, spec))
        return leaf.replace(value) if variable else value

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _batch(job: Job, mesh: Mesh, table: rules.Rules) -> Any:
    """A packed batch in which every position carries loss: the most that a step can be asked for."""
    shape = (job.batch, job.length)
    spec = partition.to_spec((BATCH, LENGTH), shape, mesh, table, name="batch")
    dtypes = {name: jnp.int32 for name in ("tokens", "segment_ids", "source", "targets")} | {"loss_mask": jnp.float32}
    place = NamedSharding(mesh, spec)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=place) for name, dtype in dtypes.items()}
