"""The clock over short schedules: what overlaps, what is waited for, what a loop adds up to."""

import pytest

from aqaa_jax.plan import hlo
from aqaa_jax.plan.collectives import Place, Torus
from aqaa_jax.plan.replay import replay
from aqaa_jax.plan.report import largest_sync_gather
from aqaa_jax.sharding.chips import chip

CHIP = chip("v5p")
RING = Torus(CHIP, (16, 16, 16), tuple(Place(0, (0, 0, z), 0) for z in range(16)))
GATHER = 16 * 2**20 * 2 * 15 / 16 / (2 * CHIP.link)  # of bf16[16,1048576]
CYCLES = 1_750_000  # a millisecond


def busy(name, reads):
    config = f'{{"window_config":{{"estimated_cycles":"{CYCLES}"}}}}'
    return f"%{name} = bf16[128] fusion({reads}), kind=kLoop, calls=%work, backend_config={config}"


WORK = """%work (w: bf16[128]) -> bf16[128] {
  %w = bf16[128] parameter(0)
  ROOT %n = bf16[128] negate(%w)
}

"""
START = (
    "%s = (bf16[1,1048576], bf16[16,1048576]) all-gather-start(%x), channel_id=1, replica_groups=[1,16]<=[16], "
    "dimensions={0}"
)
SYNC = "%g = bf16[16,1048576] all-gather(%x), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}"
INPUTS = ["%x = bf16[1,1048576] parameter(0)", "%v = bf16[128] parameter(1)"]


def play(lines, extra="", **how):
    text = WORK + extra + "ENTRY %main (x: f32[]) -> f32[] {\n" + "\n".join(f"  {x}" for x in [*INPUTS, *lines]) + "\n}"
    return replay(hlo.parse(text), RING, **how)


def test_a_synchronous_gather_is_all_exposed():
    out = play([busy("a", "%v"), SYNC, busy("b", "%v")])
    assert out.seconds == pytest.approx(0.002 + GATHER)
    assert out.sums["exposed_ici"] == pytest.approx(GATHER) == out.sums["ici"]
    ((what, count),) = out.counts.items()
    assert count == 1 and not what.asynchronous and not what.loops and what.collective.bytes == 2**25


def test_an_asynchronous_gather_hides_behind_work():
    done = "%g = bf16[16,1048576] all-gather-done(%s)"
    hidden = play([START, busy("a", "%v"), done, busy("b", "%v")])
    assert hidden.seconds == pytest.approx(0.002) and hidden.sums["exposed_ici"] == 0
    soon = play([START, done, busy("a", "%v"), busy("b", "%v")])
    assert soon.seconds == pytest.approx(0.002 + GATHER)


def test_a_sum_on_a_sparsecore_takes_the_links():
    called = """%sum (p: bf16[16,1048576]) -> bf16[16,1048576] {
  %p = bf16[16,1048576] parameter(0)
  ROOT %r = bf16[16,1048576] all-reduce(%p), channel_id=2, replica_groups=[1,16]<=[16], to_apply=%add
}, execution_thread="sparsecore"

"""
    lines = [
        "%w0 = bf16[16,1048576] broadcast(%v)",
        '%s = ((bf16[16,1048576]), bf16[16,1048576]) call-start(%w0), async_execution_thread="sparsecore", '
        "to_apply=%sum",
        busy("m", "%v"),
        "%d = bf16[16,1048576] call-done(%s)",
    ]
    out = play(lines, called)
    assert out.sums["ici"] == pytest.approx(2 * GATHER)
    assert out.sums["exposed_ici"] == pytest.approx(max(0.0, 2 * GATHER - 0.001))
    (what,) = out.counts
    assert what.asynchronous and what.collective.kind == "all-reduce"


def test_a_kernel_that_is_a_product_counts_as_one():
    def kernel(name):
        cost = '{"custom_call_config":{"cost_estimate":{"flops":"459000000000","bytes_accessed":"256"}}}'
        return f'%{name} = bf16[128] custom-call(%v), custom_call_target="tpu_custom_call", backend_config={cost}'

    out = play([kernel("add_product.1"), kernel("sqrt_alibi_forward.2")])
    assert out.sums["matmul_flops"] == out.sums["kernel_flops"] == 459e9
    assert out.sums["matmul"] == pytest.approx(0.001 / CHIP.kernel("add_product"))
    assert out.sums["kernel"] == pytest.approx(0.001 / CHIP.kernel("sqrt_alibi_forward"))


def test_transfers_share_the_links():
    second = START.replace("%s =", "%t =").replace("channel_id=1", "channel_id=2")
    both = ["%g = bf16[16,1048576] all-gather-done(%s)", "%h = bf16[16,1048576] all-gather-done(%t)"]
    assert play([START, second, *both]).seconds == pytest.approx(2 * GATHER)


FUSED = """%begin (b0: bf16[1,1048576]) -> (bf16[1,1048576], bf16[16,1048576], u32[]) {
  %b0 = bf16[1,1048576] parameter(0)
  %b1 = bf16[16,1048576] all-gather(%b0), channel_id=7, replica_groups=[1,16]<=[16], dimensions={0}
  ROOT %b2 = (bf16[1,1048576], bf16[16,1048576], u32[]) custom-call(%b1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (f0: bf16[1,1048576], f1: bf16[16,1048576], f2: bf16[128]) -> (bf16[128], bf16[16,1048576]) {
  %f0 = bf16[1,1048576] parameter(0)
  %f1 = bf16[16,1048576] parameter(1)
  %f2 = bf16[128] parameter(2)
  %f3 = bf16[16,1048576] all-gather(%f0), channel_id=7, replica_groups=[1,16]<=[16], dimensions={0}
  %f4 = bf16[128] negate(%f2)
  ROOT %f5 = (bf16[128], bf16[16,1048576]) tuple(%f4, %f3)
}

%end (e0: bf16[1,1048576], e1: bf16[16,1048576]) -> bf16[16,1048576] {
  %e0 = bf16[1,1048576] parameter(0)
  %e1 = bf16[16,1048576] parameter(1)
  %e2 = bf16[16,1048576] all-gather(%e0), channel_id=7, replica_groups=[1,16]<=[16], dimensions={0}
  ROOT %e3 = bf16[16,1048576] custom-call(%e1, %e2), custom_call_target="AsyncCollectiveDone"
}

"""


def test_a_gather_inside_a_fusion_is_one_transfer():
    config = f'{{"window_config":{{"estimated_cycles":"{CYCLES}"}}}}'
    lines = [
        "%s = (bf16[1,1048576], bf16[16,1048576], u32[]) fusion(%x), kind=kCustom, calls=%begin",
        "%s0 = bf16[1,1048576] get-tuple-element(%s), index=0",
        "%s1 = bf16[16,1048576] get-tuple-element(%s), index=1",
        f"%m = (bf16[128], bf16[16,1048576]) fusion(%s0, %s1, %v), kind=kCustom, calls=%async_collective_fusion.1, "
        f"backend_config={config}",
        "%m1 = bf16[16,1048576] get-tuple-element(%m), index=1",
        "%d = bf16[16,1048576] fusion(%s0, %m1), kind=kCustom, calls=%end",
    ]
    out = play(lines, FUSED)
    assert sum(out.counts.values()) == 1 and out.seconds == pytest.approx(0.001)
    assert out.sums["hbm_bytes"] == 2 * 256  # the buffers of the transfer are not the fusion's own traffic


LOOPED = """%body (p: (s32[], bf16[1,1048576], bf16[128])) -> (s32[], bf16[1,1048576], bf16[128]) {
  %p = (s32[], bf16[1,1048576], bf16[128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[1,1048576] get-tuple-element(%p), index=1
  %v = bf16[128] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[]{:S(2)} add(%i, %one)
  INSIDE
  ROOT %out = (s32[], bf16[1,1048576], bf16[128]) tuple(%next, %x, %v)
}

%condition (q: (s32[], bf16[1,1048576], bf16[128])) -> pred[] {
  %q = (s32[], bf16[1,1048576], bf16[128]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant(88)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

"""
LOOP = ["%zero = s32[] constant(0)", "%in = (s32[], bf16[1,1048576], bf16[128]) tuple(%zero, %x, %v)",
        "%loop = (s32[], bf16[1,1048576], bf16[128]) while(%in), condition=%condition, body=%body"]  # fmt: skip


def test_a_loop_is_its_body_times_its_trips():
    out = play(LOOP, LOOPED.replace("INSIDE", "\n  ".join([SYNC, busy("a", "%v")])))
    assert out.seconds == pytest.approx(88 * (GATHER + 0.001), rel=1e-4)
    ((what, count),) = out.counts.items()
    assert count == 88 and what.loops == (88,) and out.exposed[what] == pytest.approx(88 * GATHER)
    assert not out.notes


def test_the_largest_synchronous_gather_of_a_layer():
    out = play(LOOP, LOOPED.replace("INSIDE", "\n  ".join([SYNC, busy("a", "%v")])))
    assert largest_sync_gather(out, 88, length=4096) == 2 * 16 * 2**20
    assert largest_sync_gather(out, 2, length=4096) == 0  # a loop, but not that over layers
    assert largest_sync_gather(out, 88, length=16) == 0  # an activation: the rows' length is among its dimensions
    assert largest_sync_gather(play([SYNC, busy("a", "%v")]), 88, length=4096) == 0
    beside = ["%g = bf16[16,1048576] all-gather-done(%s)"]
    assert largest_sync_gather(play(LOOP, LOOPED.replace("INSIDE", "\n  ".join([START, *beside]))), 88, 4096) == 0


def test_a_loop_of_unknown_length_is_noted():
    extra = LOOPED.replace("INSIDE", busy("a", "%v")).replace("constant(88)", "parameter(1)")
    out = play(LOOP, extra)
    assert out.seconds == pytest.approx(0.001, rel=1e-3) and "unknown length" in " ".join(out.notes)


def test_axes_change_the_links_only():
    one, three = (play([busy("a", "%v"), SYNC], assumption=name) for name in ("1D", "3D"))
    assert one.seconds == three.seconds and one.sums["compute"] == three.sums["compute"]  # a column has one axis
