"""Small programs compiled by libtpu for TPUs that are not here; the parser's figures against known ones."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from aqaa_jax.config import MeshConfig
from aqaa_jax.plan import hlo, work
from aqaa_jax.plan.compile import DoesNotFit, compiled_or_reason
from aqaa_jax.plan.replay import replay
from aqaa_jax.plan.topology import topology, torus
from aqaa_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("libtpu")


def lowered(function, *shapes, devices):
    place = SingleDeviceSharding(devices[0])
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=place) for s in shapes))


def test_a_scanned_sharded_product_is_counted_exactly():
    target = topology("v5p:2x2x2")
    mesh = make_mesh(MeshConfig(fsdp=8), target.devices)
    weights, rows = ((3, 1024, 1024), (None, "fsdp")), ((4096, 1024), ("fsdp",))

    def forward(w_XDF, x_BD):
        return jax.lax.scan(lambda x_BD, w_DF: (jnp.tanh(x_BD @ w_DF), None), x_BD, w_XDF)[0]

    given = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, spec in (weights, rows)
    ]
    module = hlo.parse(jax.jit(forward).lower(*given).compile().as_text())
    out = replay(module, torus(target, mesh))
    assert out.sums["matmul_flops"] == 3 * 2 * 512 * 1024 * 1024
    ((what, count),) = out.counts.items()
    gather = what.collective
    assert (count, gather.kind, gather.bytes, sorted(gather.group)) == (
        3,
        "all-gather",
        1024 * 1024 * 2,
        list(range(8)),
    )
    assert gather.axes == 3 and gather.emitter.startswith("3DAllGather")
    assert not out.notes


@pytest.mark.parametrize(("name", "clock", "least"), [("v5p:2x2x1", 1.75e9, 0.88), ("v5e:2x2", 1.5e9, 0.87)])
def test_cycles_of_a_large_product_are_near_the_peak(name, clock, least):
    target = topology(name)
    program = lowered(jnp.matmul, (8192, 8192), (8192, 8192), devices=target.devices).compile()
    module = hlo.parse(program.as_text())
    (cycles,) = {work.cycles(op) for _, op in module.ops()} - {0}
    efficiency = 2 * 8192**3 / target.chip.peak * clock / cycles
    assert target.chip.clock == clock and least <= efficiency <= 0.93


def test_what_does_not_fit_says_by_how_much():
    target = topology("v5e:2x2")
    big = lowered(lambda a, b: jnp.tanh(a @ b).sum(), (65536, 65536), (65536, 65536), devices=target.devices)
    with pytest.raises(DoesNotFit) as error:
        compiled_or_reason(big, {})
    assert error.value.available == target.chip.hbm_gib < error.value.needed


def test_topologies_are_checked():
    assert topology("v5p:2x2x1").chips == 4
    assert topology("tpu7x:2x2x1").chips == 4  # of two devices each
    v4 = topology("v4:2x2x4")  # its two cores are one device, as JAX has it on the machine
    assert v4.chips == len(v4.devices) == make_mesh(MeshConfig(fsdp=16), v4.devices).size == 16
    assert len(topology("v6e:2x2", slices=2).devices) == 8
    for name, message in [("v5p", "GENERATION:SIZES"), ("v9:2x2", "'v9'"), ("v5p:3x5x7", "libtpu says")]:
        with pytest.raises(ValueError, match=message):
            topology(name)


def test_an_unknown_option_is_named():
    target = topology("v5p:2x2x1")
    with pytest.raises(ValueError, match="xla_tpu_nonsense"):
        compiled_or_reason(lowered(jnp.sin, (8, 128), devices=target.devices), {"xla_tpu_nonsense": "true"})
