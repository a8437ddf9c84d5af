"""Every module of the system on a mesh computes what it computes on one device, forward and backward.

Each axis alone, and the pairs that a strategy uses together. One case of each module is fast; the rest are long.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.codec.paraformer import LinguisticEncoder
from aqaa_jax.codec.s3 import SemanticEncoder
from aqaa_jax.config import (
    DecoderConfig,
    EstimatorConfig,
    FlowConfig,
    FlowEncoderConfig,
    HiftConfig,
    LinguisticConfig,
    MelConfig,
    SemanticConfig,
)
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
from aqaa_jax.sharding.partition import partitioning, place_rows, shard
from aqaa_jax.sharding.rules import strategy
from aqaa_jax.vocoder.flow import Flow
from aqaa_jax.vocoder.hift import Hift

LINGUISTIC = LinguisticConfig(num_mels=4, embed=16, heads=2, mlp=32, layers=3)
SEMANTIC = SemanticConfig(num_mels=8, embed=16, heads=2, mlp=32, layers=2, max_positions=12)
DECODER = DecoderConfig(
    vocab=32, embed=8, mlp=16, heads=4, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
FLOW = FlowConfig(
    vocab=40,
    speaker_dim=6,
    mel=MelConfig(num_mels=8),
    encoder=FlowEncoderConfig(embed=16, heads=2, mlp=32, layers=2),
    regulator_layers=1,
    estimator=EstimatorConfig(channels=(16,), heads=2, head_dim=8, blocks=1, mid_blocks=2),
    steps=1,
)
HIFT = HiftConfig(
    num_mels=8,
    channels=16,
    f0_channels=8,
    f0_layers=1,
    harmonics=3,
    resblock_kernels=(3,),
    resblock_dilations=((1,),),
    source_kernels=(3, 3),
    source_dilations=((1,), (2,)),
)
ALONE = [
    ("data=2", "data"),
    ("fsdp=2", "fsdp"),
    ("tensor=2", "tensor"),
    ("tensor=2", "tensor_sequence"),
    ("context=2", "context"),
    ("expert=2", "expert"),
]
TOGETHER = [
    ("data=2,fsdp=2", "hsdp"),
    ("data=2,tensor=2", "tensor"),
    ("dcn_data=2,data=2,tensor=2", "tensor"),
    ("fsdp=2,tensor=2", "fsdp_tensor_sequence"),
    ("fsdp=2,context=2", "fsdp_context"),
    ("context=2,tensor=2", "fsdp_tensor_context"),
    ("expert=2,fsdp=2", "expert_fsdp"),
    ("dcn_data=2,expert=2,tensor=2", "expert_fsdp_tensor"),
]
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiled, not run
FAST = ("data=2,fsdp=2,tensor=2", "fsdp_tensor")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Module(NamedTuple):
    build: type
    config: object
    run: object  # (model, batch) -> output
    batch: dict


def _decoder(model, batch):
    return model(batch["tokens"], segment_ids_BL=batch["segments"])


def _flow(model, batch):
    return model.sample(batch["tokens"], batch["token_lengths"], batch["mel_lengths"], batch["speaker"], batch["noise"])


TOKENS = np.random.default_rng(1).integers(0, 32, (4, 8)).astype(np.int32)
MODULES = {
    "linguistic": Module(
        LinguisticEncoder,
        LINGUISTIC,
        lambda model, batch: model(batch["feats"], batch["lengths"]),
        {"feats": noise(4, 10, LINGUISTIC.features), "lengths": np.array([10, 7, 4, 1])},
    ),
    "semantic": Module(
        SemanticEncoder,
        SEMANTIC,
        lambda model, batch: model(batch["mel"], batch["lengths"]),
        {"mel": noise(4, 20, 8), "lengths": np.array([20, 11, 4, 1])},
    ),
    "decoder": Module(
        Decoder,
        DECODER,
        _decoder,
        {"tokens": TOKENS, "segments": np.array([[1] * 8, [1] * 3 + [2] * 5, [1] * 5 + [0] * 3, [1] * 8])},
    ),
    "flow": Module(
        Flow,
        FLOW,
        _flow,
        {
            "tokens": np.pad(TOKENS, ((0, 0), (0, 4))),
            "token_lengths": np.array([12, 7, 9, 10]),
            "mel_lengths": np.array([24, 14, 17, 19]),
            "speaker": noise(4, 6, seed=2),
            "noise": noise(4, 24, 8, seed=3),
        },
    ),
    "hift": Module(
        Hift,
        HIFT,
        lambda model, batch: model(batch["mel"], batch["phase"], batch["noise"], lengths_B=batch["lengths"])[0],
        {
            "mel": noise(4, 6, 8),
            "phase": noise(4, 4, seed=1),
            "noise": noise(4, 6 * 256, 4, seed=2),
            "lengths": np.array([6, 3, 5, 4]),
        },
    ),
}


def model_of(module):
    """Every weight random: zeros would hide what is split wrongly. By NumPy, for dozens of initialisers take long."""

    def one(path, x):
        name, seed = jax.tree_util.keystr(path), len(jax.tree_util.keystr(path)) + x.size
        if "scale" in name or "alpha" in name:
            return 1 + 0.05 * noise(*x.shape, seed=seed)
        return noise(*x.shape, seed=seed) * max(np.prod(x.shape[:-1]), 16) ** -0.5

    abstract = jax.eval_shape(lambda: module.build(module.config, rngs=nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(one, abstract)


def values(module, model, batch):
    """Output, and the gradient of a sum of it with random factors."""

    def loss(model, batch):
        out = module.run(model, batch)
        return jnp.sum(out * noise(*out.shape, seed=9)), out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)
    (_, out), grads = step(model, batch)
    return np.asarray(out), {name: np.asarray(grad) for name, grad in named_weights(grads).items()}


@pytest.fixture(scope="module")
def single():
    """``single(name)``: module, model and what one device computes; once for all cases."""
    known = {}

    def of(name):
        if name not in known:
            module = MODULES[name]
            model = model_of(module)
            known[name] = (module, model, *values(module, model, module.batch))
        return known[name]

    return of


def close(there, here, name, floor=0.0):
    """``floor``: what rounding may leave of a sum that cancels out, as the gradient of a bias of keys does."""
    assert np.abs(there - here).max() <= 2e-5 * np.abs(here).max() + 1e-6 * floor, name


def cases():
    for name in MODULES:
        yield pytest.param(*FAST, name, marks=[pytest.mark.long] if name == "flow" else [])
        yield from (pytest.param(*case, name, marks=pytest.mark.long) for case in [*ALONE, *TOGETHER])


@pytest.mark.parametrize(("sizes", "rules", "name"), list(cases()))
def test_forward_and_gradient(single, sizes, rules, name):
    module, model, out, grads = single(name)
    mesh, table = make_mesh(parse_mesh(sizes)), strategy(rules)
    with partitioning(mesh, table):
        out_here, grads_here = values(module, shard(model, mesh, table), place_rows(module.batch, mesh, table))
    close(out_here, out, "output")
    assert sum(bool(grad.any()) for grad in grads.values()) > len(grads) / 2
    largest = max(np.abs(grad).max() for grad in grads.values())
    for weight, grad in grads.items():
        close(grads_here[weight], grad, weight, largest)
