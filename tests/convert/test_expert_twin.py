"""A decoder with experts in the real transformers, through ``modeling_step1.py``: logits, greedy ids, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint import folder
from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.config import ExpertsConfig
from aqaa_jax.convert import export
from aqaa_jax.decoder.model import Decoder

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
LOGITS = 1e-4
VARIANTS = {
    "shared, bias": ExpertsConfig(experts=5, top_k=2, mlp=24, shared_mlp=16, score="sigmoid", bias_rate=0.01),
    "as they are": ExpertsConfig(experts=4, top_k=3, mlp=16, normalise=False),
}


@pytest.fixture(scope="module", params=VARIANTS)
def models(request, golden_folder, golden_config, tmp_path_factory):
    """Ours, and what transformers loads of its export."""
    path = tmp_path_factory.mktemp("experts")
    decoder = dataclasses.replace(golden_config.decoder, mlp=0, experts=VARIANTS[request.param])
    decoder = dataclasses.replace(decoder, dtype="float32", param_dtype="float32")
    model = jax.tree.map(lambda w: 2 * w, Decoder(decoder, rngs=nnx.Rngs(0)))
    if decoder.experts.bias_rate:
        model.blocks.mlp.bias.set_value(0.2 * jax.random.normal(jax.random.key(1), (decoder.layers, 5)))
    save_model(path / "decoder.safetensors", model)
    (path / folder.TEXT_MODEL).write_bytes((golden_folder / folder.TEXT_MODEL).read_bytes())
    folder.write_config(path, dataclasses.replace(golden_config, decoder=decoder))
    export.write(export.plan(path, parts=("decoder",), dtype="float32"), path / "out", say=lambda text: None)
    return model, transformers.AutoModelForCausalLM.from_pretrained(path / "out", trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def ids():
    return np.asarray(jax.random.randint(jax.random.key(2), (3, 11), 0, 384))


def test_logits(models, ids):
    ours, theirs = models
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits
    np.testing.assert_allclose(logits, ours(jnp.asarray(ids)), atol=LOGITS, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(models, ids, use_cache):
    ours, theirs = models
    tokens = jnp.asarray(ids)
    step = jax.jit(lambda m, t: jnp.argmax(m(t)[:, -1], axis=-1))
    for _ in range(4):
        tokens = jnp.concatenate([tokens, step(ours, tokens)[:, None]], axis=1)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    out = theirs.generate(torch.tensor(ids), use_cache=use_cache, **settings)
    np.testing.assert_array_equal(out, tokens)


def test_gradient_reaches_routers_and_experts(models, ids):
    ours, theirs = models
    loss = lambda m: jnp.mean(jax.nn.logsumexp(m(jnp.asarray(ids)), axis=-1))  # noqa: E731
    grads = jax.jit(jax.grad(loss))(ours).blocks.mlp
    theirs.zero_grad()
    theirs(torch.tensor(ids)).logits.logsumexp(-1).mean().backward()
    layer = theirs.model.layers[1].mlp
    np.testing.assert_allclose(layer.gate.weight.grad, grads.router[...][1].T, atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(layer.experts[2].up_proj.weight.grad, grads.up[...][1, 2].T, atol=1e-5, rtol=1e-3)


def test_kept_by_transformers(models, tmp_path):
    theirs = models[1]
    theirs.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(ValueError, match="num_experts_per_tok is 9, expected 1 to 4"):
        type(theirs.config)(n_routed_experts=4, num_experts_per_tok=9)
