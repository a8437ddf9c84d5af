"""The semantic tokenizer as the graph of ``speech_tokenizer_v1.onnx``: log-mel frames in, codes out.

Inputs ``feats`` [1, mels, T] float32 and ``feats_length`` [1] int32, output ``indices`` [1, U] int32 with
``U = ceil(ceil(T / 2) / 2)``, as in the published file; Step-Audio and CosyVoice give them by place. So are the names
of the nodes that tell anonymous weights apart (the importer here and S3Tokenizer's ``onnx2torch`` go by them):
``/blocks.0/attn/query/MatMul``, ``/blocks.0/attn_ln/Mul``, ``/quantizer/rq/model/layers.0/_codebook/Pow_1``.
Frames beyond ``feats_length`` change nothing, and what comes out for them means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aqaa_jax.config import SemanticConfig
from aqaa_jax.convert import onnx_writer as onnx
from aqaa_jax.convert import s3

_CODEBOOK = "/quantizer/rq/model/layers.0/_codebook"
_FORBIDDEN = -1e30


class _Nodes(list[bytes]):
    """Nodes in order. Called with a kind of operation and its inputs it adds one and gives the name of its output."""

    def __call__(
        self,
        kind: str,
        *inputs: str | float | np.ndarray,  # an array or a number: a constant
        name: str = "",
        output: str = "",
        **attributes: int | Sequence[int],
    ) -> str:
        names = [i if isinstance(i, str) else self._constant(i) for i in inputs]
        name = name or f"/{kind}_{len(self)}"
        self.append(onnx.node(kind, names, output or f"{name}_output_0", name, **attributes))
        return output or f"{name}_output_0"

    def _constant(self, number: float | np.ndarray) -> str:
        name = f"/Constant_{len(self)}"
        array = number if isinstance(number, np.ndarray) else np.array(number, np.float32)
        self.append(onnx.constant(array, f"{name}_output_0", name))
        return f"{name}_output_0"


def graph(config: SemanticConfig) -> onnx.Model:
    """The graph for weights of these sizes, and these sizes as its metadata (``s3.config_to_upstream``)."""
    add, stored = _Nodes(), s3.initializers(config)
    lengths = add("Cast", "feats_length", to=7)
    x = "feats"
    for conv in ("conv1", "conv2"):
        x = add("Where", _valid(add, x, lengths, 2), x, 0.0)
        weights = [stored[f"encoder.{conv}.{field}"] for field in ("weight", "bias")]
        x = add("Conv", x, *weights, name=f"/{conv}/Conv", kernel_shape=(3,), pads=(1, 1), strides=(2,))
        x = _gelu(add, x)
        lengths = add("Div", add("Add", lengths, _ints(1)), _ints(2))
    x = add("Transpose", x, perm=(0, 2, 1))
    count = add("Slice", add("Shape", x), _ints(1), _ints(2))
    x = add("Add", x, add("Slice", stored["encoder.positional_embedding"], _ints(0), count, _ints(0)))
    bias = add("Where", _valid(add, x, lengths, 1), 0.0, _FORBIDDEN)
    for i in range(config.layers):
        x = _block(add, x, bias, f"blocks.{i}", config, stored)
    _codes(add, x, stored["quantizer._codebook.embed"])
    return onnx.Model(
        name="speech_tokenizer_v1_25hz",
        nodes=tuple(add),
        inputs=(onnx.value("feats", "float32", (1, config.num_mels, "T")), onnx.value("feats_length", "int32", (1,))),
        outputs=(onnx.value("indices", "int32", (1, "U")),),
        metadata={key: str(size) for key, size in s3.config_to_upstream(config).items()},
    )


def _block(add: _Nodes, x: str, bias: str, block: str, config: SemanticConfig, stored: Mapping[str, str]) -> str:
    """Full attention and feed-forward, each behind a LayerNorm; ``bias`` [T] is added to the logits."""
    N, H = config.heads, config.embed // config.heads

    def linear(x: str, layer: str, path: str, *, with_bias: bool = True) -> str:
        name, weight = f"/{block}/{path}", f"encoder.{block}.{layer}"
        x = add("MatMul", x, stored[f"{weight}.weight"], name=f"{name}/MatMul")
        return add("Add", stored[f"{weight}.bias"], x, name=f"{name}/Add") if with_bias else x

    def heads(x: str, *perm: int) -> str:
        return add("Transpose", add("Reshape", x, _ints(0, 0, N, H)), perm=perm)

    y = _norm(add, x, block, "attn_ln", config.norm_eps, stored)
    q = add("Mul", heads(linear(y, "attn.query", "attn/query"), 0, 2, 1, 3), H**-0.5)
    k = heads(linear(y, "attn.key", "attn/key", with_bias=False), 0, 2, 3, 1)
    v = heads(linear(y, "attn.value", "attn/value"), 0, 2, 1, 3)
    shares = add("Softmax", add("Add", add("MatMul", q, k), bias), axis=-1)
    mixed = add("Transpose", add("MatMul", shares, v), perm=(0, 2, 1, 3))
    x = add("Add", x, linear(add("Reshape", mixed, _ints(0, 0, N * H)), "attn.out", "attn/out"))
    y = _norm(add, x, block, "mlp_ln", config.norm_eps, stored)
    return add("Add", x, linear(_gelu(add, linear(y, "mlp.0", "mlp/mlp.0")), "mlp.2", "mlp/mlp.2"))


def _norm(add: _Nodes, x: str, block: str, layer: str, eps: float, stored: Mapping[str, str]) -> str:
    """LayerNorm over the last axis, in single steps: the operation of that name is younger than the published file."""
    name, weight = f"/{block}/{layer}", f"encoder.{block}.{layer}"
    x = add("Sub", x, add("ReduceMean", x, axes=(-1,)))
    variance = add("ReduceMean", add("Mul", x, x), axes=(-1,))
    x = add("Div", x, add("Sqrt", add("Add", variance, eps)))
    x = add("Mul", x, stored[f"{weight}.weight"], name=f"{name}/Mul")
    return add("Add", x, stored[f"{weight}.bias"], name=f"{name}/Add_1")


def _gelu(add: _Nodes, x: str) -> str:
    return add("Mul", add("Mul", x, 0.5), add("Add", add("Erf", add("Mul", x, 0.5**0.5)), 1.0))


def _valid(add: _Nodes, x: str, lengths: str, axis: int) -> str:
    """[T] true for places of ``axis`` of ``x`` that lie within the length."""
    size = add("Squeeze", add("Slice", add("Shape", x), _ints(axis), _ints(axis + 1)), _ints(0))
    return add("Less", add("Range", np.array(0), size, np.array(1)), lengths)


def _codes(add: _Nodes, x: str, codebook: str) -> None:
    """The nearest column of ``codebook`` to each vector of unit length: ``|c|^2 - 2 x.c``, the first of equal ones."""
    norm = add("ReduceL2", x, axes=(-1,))
    x = add("Div", x, add("Max", norm, 1e-12))
    squares = add("ReduceSum", add("Pow", codebook, 2.0, name=f"{_CODEBOOK}/Pow_1"), _ints(0), keepdims=1)
    dots = add("MatMul", add("Mul", x, 2.0), codebook, name=f"{_CODEBOOK}/MatMul")
    nearest = add("ArgMin", add("Sub", squares, dots), axis=-1, keepdims=0)
    add("Cast", nearest, output="indices", to=6)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
