"""FLOPs and bytes of single operations, against figures worked out by hand."""

import pytest

from aqaa_jax.plan import hlo, work

BF16 = "{1,0:T(8,128)(2,1)}"


def only(lines, extra=""):
    """The last operation of an entry computation of ``lines``."""
    text = (
        "HloModule m\n\n" + extra + "\nENTRY %main (p: f32[]) -> f32[] {\n" + "\n".join(f"  {x}" for x in lines) + "\n}"
    )
    module = hlo.parse(text)
    main = module.computations["main"]
    return module, main, list(main.ops.values())[-1]


def arrays(left, right):
    return [f"%a = bf16[{left}]{BF16} parameter(0)", f"%b = bf16[{right}]{BF16} parameter(1)"]


@pytest.mark.parametrize(
    ("left", "right", "out", "how", "flops"),
    [
        ("64,32", "32,48", "64,48", "dim_labels=bf_io->bf", 2 * 64 * 32 * 48),
        # Heads as a spatial dimension of the kernel, padded: each output head meets one real kernel position.
        ("64,1,32", "4,32,16", "64,4,16", "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=b0f_0io->b0f",
         2 * 64 * 32 * 4 * 16),
        # A batch of products, written as a convolution over an image with holes.
        ("8,12,64,32", "8,12,48,32", "8,12,64,48",
         "window={size=8x12 stride=7x11 lhs_dilate=8x12}, dim_labels=01bf_01oi->01bf", 2 * 8 * 12 * 64 * 32 * 48),
        # A real convolution of 3 taps, with one column of padding on either side.
        ("2,10,4", "3,4,5", "2,10,5", "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", 2 * 2 * 4 * 5 * (3 * 10 - 2)),
    ],
)  # fmt: skip
def test_convolution_flops(left, right, out, how, flops):
    module, main, op = only([*arrays(left, right), f"ROOT %c = f32[{out}] convolution(%a, %b), {how}"])
    assert work.matmul_flops(module, main, op) == flops


def test_dot_flops():
    lines = [*arrays("7,64,32", "7,32,48"), "ROOT %c = f32[7,64,48] dot(%a, %b), lhs_batch_dims={0}, "
             "lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"]  # fmt: skip
    assert work.matmul_flops(*only(lines)) == 2 * 7 * 64 * 32 * 48


def test_kernel_flops_are_what_its_author_declared():
    config = '{"custom_call_config":{"cost_estimate":{"flops":"123","bytes_accessed":"456"}}}'
    lines = [*arrays("8,8", "8,8"), f'ROOT %c = bf16[8,8] custom-call(%a, %b), custom_call_target="tpu_custom_call", backend_config={config}']  # fmt: skip  # noqa: E501
    module, main, op = only(lines)
    assert work.kernel_flops(op) == 123 and work.hbm_bytes(module, main, op) == 456


def test_hbm_bytes_leave_out_vmem():
    vmem = "{1,0:T(8,128)(2,1)S(1)}"
    lines = [
        f"%a = bf16[8,128]{BF16} parameter(0)",
        f"%b = bf16[8,128]{vmem} parameter(1)",
        f"ROOT %c = bf16[8,128]{BF16} add(%a, %b)",
    ]
    assert work.hbm_bytes(*only(lines)) == 2 * 2048


FUSED = """%inside (p0: bf16[88,8,128], p1: bf16[88,8,128], p2: s32[]) -> bf16[88,8,128] {
  %p0 = bf16[88,8,128]{2,1,0} parameter(0)
  %p1 = bf16[88,8,128]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %layer = bf16[1,8,128]{2,1,0} dynamic-slice(%p0, %p2, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %twice = bf16[1,8,128]{2,1,0} add(%layer, %layer)
  ROOT %put = bf16[88,8,128]{2,1,0} dynamic-update-slice(%p1, %twice, %p2, %zero, %zero)
}
"""


def test_a_fusion_pays_for_the_slices_it_touches():
    lines = [
        "%a = bf16[88,8,128]{2,1,0} parameter(0)",
        "%b = bf16[88,8,128]{2,1,0} parameter(1)",
        "%i = s32[]{:T(128)S(2)} parameter(2)",
        "ROOT %f = bf16[88,8,128]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%inside",
    ]
    assert work.hbm_bytes(*only(lines, FUSED)) == 2 * 8 * 128 * 2  # a layer read, a layer written


NESTED = """%slicer (q0: bf16[88,8,128], q1: s32[]) -> bf16[8,128] {
  %q0 = bf16[88,8,128]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %nil = s32[] constant(0)
  %one = bf16[1,8,128]{2,1,0} dynamic-slice(%q0, %q1, %nil, %nil), dynamic_slice_sizes={1,8,128}
  ROOT %flat = bf16[8,128]{1,0} bitcast(%one)
}

%outer (p0: bf16[88,8,128], p1: s32[], p2: bf16[16,8]) -> bf16[16,128] {
  %p0 = bf16[88,8,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[16,8]{1,0} parameter(2)
  %w = bf16[8,128]{1,0} fusion(%p0, %p1), kind=kLoop, calls=%slicer
  ROOT %y = bf16[16,128]{1,0} convolution(%p2, %w), dim_labels=bf_io->bf
}
"""


OTHER_TILES = """%tiles (p0: s8[88,32,128]) -> s8[88,32,128] {
  %p0 = s8[88,32,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %same = s8[88,32,128]{2,1,0:T(8,128)(4,1)} copy(%p0)
}

%inside (q0: s8[88,32,128], q1: s32[]) -> f32[32,128] {
  %q0 = s8[88,32,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %q1 = s32[] parameter(1)
  %nil = s32[] constant(0)
  %as_tiles = s8[88,32,128]{2,1,0} fusion(%q0), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiles
  %one = s8[1,32,128]{2,1,0} dynamic-slice(%as_tiles, %q1, %nil, %nil), dynamic_slice_sizes={1,32,128}
  %flat = s8[32,128]{1,0} bitcast(%one)
  ROOT %y = f32[32,128]{1,0} convert(%flat)
}
"""


def test_a_stack_read_as_other_tiles_is_not_read_whole():
    lines = [
        "%a = s8[88,32,128]{2,1,0:T(32,128)(4,1)} parameter(0)",
        "%i = s32[]{:T(128)S(2)} parameter(1)",
        "ROOT %f = f32[32,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%inside",
    ]
    assert work.hbm_bytes(*only(lines, OTHER_TILES)) == 32 * 128 * (1 + 4)


def test_a_slice_inside_a_fusion_of_a_fusion_is_a_slice():
    lines = [
        "%a = bf16[88,8,128]{2,1,0} parameter(0)",
        "%i = s32[]{:T(128)S(2)} parameter(1)",
        "%x = bf16[16,8]{1,0} parameter(2)",
        "ROOT %f = bf16[16,128]{1,0} fusion(%a, %i, %x), kind=kOutput, calls=%outer",
    ]
    assert work.hbm_bytes(*only(lines, NESTED)) == 2 * (8 * 128 + 16 * 8 + 16 * 128)
