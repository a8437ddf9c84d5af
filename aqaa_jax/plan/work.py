"""What one operation of a scheduled program costs: floating point operations, bytes through HBM, estimated cycles."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

from aqaa_jax.plan.hlo import Computation, Module, Op

HBM = 0
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "optimization-barrier", "iota"),
}
_SAME_PLACE = "output_to_operand_aliasing={{}: (0, {})}"  # a fusion whose result is its operand, read as other tiles
_SLICED = ("dynamic-slice", "slice", "gather")
# Inside an asynchronous collective fusion: the transfer and what carries its buffers on. The links pay for those.
_CARRIED = ("tuple", "custom-call", "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def matmul_flops(module: Module, computation: Computation, op: Op) -> int:
    """2 x multiply-adds of the products in ``op``, a fusion's inside included; padding and holes are not counted."""
    if op.opcode == "fusion":
        inside = module.computations[op.called("calls")[0]]
        return sum(matmul_flops(module, inside, inner) for inner in inside.ops.values())
    if op.opcode == "dot":
        left = computation.ops[op.operands[0]].shapes[0]
        contracted = [int(i) for i in re.findall(r"\d+", op.attribute("lhs_contracting_dims"))]
        return 2 * math.prod(op.shapes[0].dims) * math.prod(left.dims[i] for i in contracted)
    return _convolution_flops(computation, op) if op.opcode == "convolution" else 0


def kernel_flops(op: Op) -> int:
    """The FLOPs that the author of a Pallas kernel declared (``pl.CostEstimate``); 0 for anything else."""
    return int(_cost(op).get("flops", 0))


def cycles(op: Op) -> int:
    """The compiler's own ``estimated_cycles`` of an operation; 0 where it gives none."""
    return int(op.config.get("window_config", {}).get("estimated_cycles", 0))


def hbm_bytes(module: Module, computation: Computation, op: Op) -> int:
    """Bytes that ``op`` reads from HBM and writes to it: results and operands that live there.

    An operand of which a fusion only reads a slice counts as the slice, and a result that is an operand updated in
    place counts as the update. Arrays in VMEM cost nothing; nor does what only renames (tuples, bitcasts). The
    operations inside a loop's body are counted there.
    """
    if op.opcode in _FREE or op.opcode.endswith("-done"):
        return 0
    if op.opcode.endswith("-start"):  # the result holds source and target
        moved = [s for s in op.shapes if s.dtype != "u32"]
        return sum(s.bytes for s in moved[:2] if s.space == HBM)
    cost = _cost(op)
    if "bytes_accessed" in cost:
        return int(cost["bytes_accessed"])
    if op.opcode == "fusion":
        return _fusion_bytes(module, computation, op)
    if op.opcode in _SLICED:
        return 2 * _in_hbm(op)
    if op.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(computation.ops.get(op.operands[1]))
    return _in_hbm(op) + sum(_in_hbm(computation.ops.get(name)) for name in op.operands)


def _fusion_bytes(module: Module, computation: Computation, op: Op) -> int:
    inside = module.computations[op.called("calls")[0]]
    total = 0
    for parameter, name in zip(inside.parameters(), op.operands, strict=True):
        given = computation.ops.get(name)
        if given is None or not _in_hbm(given):
            continue
        total += min(_in_hbm(given), _read(module, inside, parameter))
    results = inside.root.operands if inside.root.opcode == "tuple" else (inside.root.name,)
    for shape, name in zip(op.shapes, results, strict=False):
        if shape.space != HBM:
            continue
        made = inside.ops[name]
        while made.opcode in ("bitcast", "copy", "reshape") and made.operands[0] in inside.ops:
            made = inside.ops[made.operands[0]]
        if made.opcode == "parameter" or made.opcode in _CARRIED:
            continue
        updated = made.opcode == "dynamic-update-slice"
        total += _bytes(inside.ops[made.operands[1]]) if updated else shape.bytes
    return total


def _read(module: Module, inside: Computation, op: Op) -> int:
    """Bytes of ``op`` that a fused computation reads: slices as such, also inside fusions of its own; all otherwise."""
    total = 0
    for user in inside.users[op.name]:
        first = user.operands[0] == op.name
        if user.opcode == "bitcast" or _SAME_PLACE in user.text:
            total += _read(module, inside, user)
        elif user.opcode == "fusion":
            within = module.computations[user.called("calls")[0]]
            places = [i for i, name in enumerate(user.operands) if name == op.name]
            total += sum(_read(module, within, within.parameters()[i]) for i in places)
        elif user.opcode in _SLICED and first:
            total += _bytes(user)
        elif user.opcode not in _CARRIED and not (user.opcode == "dynamic-update-slice" and first):
            return _bytes(op)
    return total


def _bytes(op: Op) -> int:
    return sum(shape.bytes for shape in op.shapes)


def _in_hbm(op: Op | None) -> int:
    return 0 if op is None else sum(shape.bytes for shape in op.shapes if shape.space == HBM)


def _cost(op: Op) -> dict[str, Any]:
    if op.opcode != "custom-call":
        return {}
    return op.config.get("custom_call_config", {}).get("cost_estimate", {})


def _convolution_flops(computation: Computation, op: Op) -> int:
    """2 x multiply-adds of a convolution; the TPU compiler writes every matrix product as one."""
    left, right = (computation.ops[name].shapes[0].dims for name in op.operands)
    left_labels, rest = op.attribute("dim_labels").split("_")
    right_labels, out_labels = rest.split("->")
    out = dict(zip(out_labels, op.shapes[0].dims, strict=True))
    kernel = dict(zip(right_labels, right, strict=True))
    image = dict(zip(left_labels, left, strict=True))
    batch_groups = int(op.attribute("batch_group_count") or 1)
    window = _window(op.attribute("window"))
    spatial = sorted(label for label in out_labels if label.isdigit())
    taps = []
    for i, d in enumerate(spatial):
        stride, pad, holes, dilation = (window[key][i] if window[key] else default for key, default in _TAPS)
        taps.append(_valid_taps(image[d], kernel[d], out[d], stride, pad, holes, dilation))
    return 2 * out["b"] * out["f"] * kernel["i"] * math.prod(taps) // batch_groups


_TAPS: tuple[tuple[str, Any], ...] = (("stride", 1), ("pad", (0, 0)), ("lhs_dilate", 1), ("rhs_dilate", 1))


def _window(text: str) -> dict[str, list[Any]]:
    """The fields of ``{size=8x1 stride=7x1 pad=0_0x1_1}``, one entry per spatial dimension."""
    fields: dict[str, list[Any]] = {key: [] for key, _ in _TAPS}
    for key, value in re.findall(r"(\w+)=(\S+)", text.strip("{}")):
        parts = value.split("x")
        fields[key] = [tuple(int(n) for n in p.split("_")) for p in parts] if key == "pad" else [int(p) for p in parts]
    return fields


def _valid_taps(
    image: int, kernel: int, out: int, stride: int, pad: tuple[int, int], base_dilation: int, dilation: int
) -> int:
    """How many of ``out`` x ``kernel`` products meet a real value: no padding, no hole of a dilated image."""
    if kernel == 1 and stride == base_dilation == 1 and pad == (0, 0):
        return out  # nearly always; without the double loop
    extent = (image - 1) * base_dilation + 1
    places = (o * stride + k * dilation - pad[0] for o, k in itertools.product(range(out), range(kernel)))
    return sum(0 <= place < extent and place % base_dilation == 0 for place in places)
