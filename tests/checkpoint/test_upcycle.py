"""A dense model made a mixture of experts computes the same, whatever its routers choose."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint import folder
from aqaa_jax.checkpoint.average import boxes
from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.checkpoint.shards import ShardReader, write_shards
from aqaa_jax.checkpoint.tree import layer_name, named_weights
from aqaa_jax.checkpoint.upcycle import Upcycled, upcycle
from aqaa_jax.cli.main import main
from aqaa_jax.config import DecoderConfig, ExpertsConfig, SystemConfig
from aqaa_jax.decoder.model import Decoder

DECODER = DecoderConfig(
    vocab=32, embed=8, mlp=12, heads=2, kv_heads=1, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
EXPERTS = ExpertsConfig(experts=4, top_k=2, bias_rate=0.01)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 32)


def abstract(config):
    return jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A model folder whose other parts are files of another kind: they are not read."""
    path = tmp_path_factory.mktemp("dense")
    model = Decoder(DECODER, rngs=nnx.Rngs(0))
    save_model(path / "decoder.safetensors", model, tables=("embedding.table",))
    for part in ("linguistic", "semantic", "flow", "hift"):
        (path / f"{part}.safetensors").write_bytes(part.encode())
    (path / folder.TEXT_MODEL).write_bytes(b"pieces")
    folder.write_config(path, SystemConfig(name="dense", decoder=DECODER), {"seed": 7})
    return path


def test_same_function_same_other_parts(dense, tmp_path, capsys):
    arguments = [str(dense), "-o", str(tmp_path / "moe"), "--experts=4", "--top-k=2", "--bias-rate=0.01"]
    assert main(["upcycle", *arguments]) == 0
    config = folder.read_config(tmp_path / "moe")
    assert config.decoder == dataclasses.replace(DECODER, experts=dataclasses.replace(EXPERTS, mlp=12))
    model = folder.read_part(tmp_path / "moe", "decoder", abstract(config.decoder))
    plain = folder.read_part(dense, "decoder", abstract(DECODER))
    np.testing.assert_allclose(model(TOKENS), plain(TOKENS), atol=1e-5, rtol=1e-5)
    assert np.std(model.blocks.mlp.router[...]) > 0.01 and not model.blocks.mlp.bias[...].any()
    for name in ("flow.safetensors", folder.TEXT_MODEL):
        assert (tmp_path / "moe" / name).read_bytes() == (dense / name).read_bytes()
    about = json.loads((tmp_path / "moe" / folder.CONFIG).read_text())["provenance"]["upcycle"]
    assert about["dense"]["path"] == str(dense) and about["experts"]["experts"] == 4
    assert main(["upcycle", *arguments]) == 2 and "a model folder already" in capsys.readouterr().err
    again = [str(tmp_path / "moe"), "-o", str(tmp_path / "twice"), "--experts=2", "--top-k=1"]
    assert main(["upcycle", *again]) == 2 and "has 4 experts already" in capsys.readouterr().err


def test_layers_stored_apart_give_the_same_experts(dense, tmp_path):
    """As in large models; and nothing depends on the boxes in which it is read, noise included."""
    reader = ShardReader(dense, "decoder")
    stacked = {n: x for n, x in reader.shapes.items() if n.startswith("blocks.")}
    plan = {layer_name(n, i): jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for n, x in stacked.items() for i in (0, 1)}
    values = {layer_name(n, i): reader.read(n)[i] for n in stacked for i in (0, 1)}
    write_shards(tmp_path, plan, lambda name: [values[name]], prefix="decoder")
    whole, apart = (Upcycled(source, EXPERTS, noise=0.1) for source in (reader, ShardReader(tmp_path, "decoder")))
    rows = lambda shape: tuple(slice(0, n) for n in shape)  # noqa: E731
    for name in ("gate", "up", "down", "bias"):
        both = whole.read(f"blocks.mlp.{name}", rows(whole.shapes[f"blocks.mlp.{name}"].shape))
        layer = f"blocks.1.mlp.{name}"
        assert apart.shapes[layer].shape == both.shape[1:]
        if name != "bias":
            source = values[layer]
            assert 0.05 < np.std(both[1] / source - 1) < 0.15 and not np.array_equal(both[1, 0], both[1, 1])
        shape = whole.shapes[f"blocks.mlp.{name}"].shape
        for box in boxes(shape, 25):
            np.testing.assert_array_equal(whole.read(f"blocks.mlp.{name}", box), both[box])
    assert apart.shapes["blocks.0.mlp.router"].shape == (8, 4)
    expected = named_weights(abstract(dataclasses.replace(DECODER, experts=dataclasses.replace(EXPERTS, mlp=12))))
    assert {n: x.shape for n, x in expected.items()} == {n: x.shape for n, x in whole.shapes.items() if n in expected}


@pytest.mark.parametrize(
    "changes, message",
    [({"shared_mlp": 8}, "shared_mlp 8"), ({"normalise": False}, "normalise False")],
)
def test_what_would_not_be_the_same_is_refused(dense, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        upcycle(dense, tmp_path / "x", dataclasses.replace(EXPERTS, **changes))
    assert not (tmp_path / "x").exists()


def test_a_source_without_dense_layers_is_refused():
    empty = SimpleNamespace(shapes={"head": jax.ShapeDtypeStruct((2, 3), np.float32)})
    with pytest.raises(ValueError, match=r"no tensor blocks\.mlp\.gate"):
        Upcycled(empty, EXPERTS)
