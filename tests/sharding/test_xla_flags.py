"""The table of XLA options: every name is known to the pinned libtpu; sets are told apart."""

import importlib.metadata

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from aqaa_jax.sharding import xla_flags

SMALLEST = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


def toy(name):
    try:
        installed = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("libtpu is not installed: pip install 'aqaa_jax[plan]' (Linux only)")
    assert installed == xla_flags.LIBTPU
    from aqaa_jax.plan.topology import topology

    place = SingleDeviceSharding(topology(name).devices[0])
    return jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place))


@pytest.mark.parametrize("chip", xla_flags.GENERATIONS)
def test_every_name_compiles(chip):
    lowered = toy(SMALLEST[chip])
    for flag in (*xla_flags.GENERATIONS[chip], *xla_flags.SLICES, *xla_flags.OFFLOAD):
        lowered.compile(compiler_options={flag.name: flag.value})
    lowered.compile(compiler_options=xla_flags.compiler_options(chip, slices=2, more=["offload"]))


def test_names_the_compiler_does_not_know_fail():
    for name in ("xla_tpu_nonsense", *(flag.name for flag in xla_flags.RUNTIME)):
        with pytest.raises(jax.errors.JaxRuntimeError, match=f"No such compile option: '{name}'"):
            toy("v5p:2x2x1").compile(compiler_options={name: "true"})


def test_sets():
    one = xla_flags.compiler_options("v5p")
    assert one["xla_tpu_prefer_async_allgather_to_allreduce"] == "true"
    assert set(one) < set(xla_flags.compiler_options("v5p", slices=2))
    assert xla_flags.compiler_options("") == {}
    assert xla_flags.digest(one) == xla_flags.digest(dict(reversed(one.items())))
    assert xla_flags.digest(one) != xla_flags.digest(one | {"xla_enable_async_all_gather": "false"})
    with pytest.raises(ValueError, match=r"'v3'.*v5p"):
        xla_flags.compiler_options("v3")


def test_more_on_top():
    more = xla_flags.compiler_options("v5p", more=["offload", "xla_enable_async_all_gather=false", "xla_a=b=c"])
    assert more["xla_tpu_host_transfer_overlap_limit"] == "24" and more["xla_a"] == "b=c"
    assert more["xla_enable_async_all_gather"] == "false"
    with pytest.raises(ValueError, match="'nonsense'"):
        xla_flags.compiler_options("v5p", more=["nonsense"])


def test_every_line_has_a_source_and_no_name_stands_twice():
    for lines in (*xla_flags.GENERATIONS.values(), xla_flags.SLICES, xla_flags.OFFLOAD, xla_flags.RUNTIME):
        assert all(flag.why for flag in lines) and len({flag.name for flag in lines}) == len(lines)


@pytest.mark.parametrize(("kind", "chip"), [("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("TPU7x", "tpu7x"), ("cpu", "")])
def test_generation_of_a_device(kind, chip):
    assert xla_flags.generation(kind) == chip
