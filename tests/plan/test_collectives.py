"""Groups in every notation, and the time of collectives on a torus, worked out by hand."""

import itertools

import pytest

from aqaa_jax.plan.collectives import Collective, Place, Torus, replica_group
from aqaa_jax.sharding.chips import CHIPS, chip

LINK = 90e9  # v5p
MIB = 2**20


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups={}, x", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, x", (0, 2, 4, 6)),
    ],
)
def test_groups(text, group):
    assert replica_group(text, 8) == group


def test_unknown_notation_is_refused():
    with pytest.raises(ValueError, match="unknown notation"):
        replica_group("replica_groups=somehow", 8)


def torus(sizes=(4, 4, 4), name="v5p", slices=1):
    """Partitions run over slices, then x, y, z, the last fastest."""
    places = [Place(s, xyz, 0) for s in range(slices) for xyz in itertools.product(*map(range, sizes))]
    return Torus(chip(name), sizes, tuple(places))


def gather(group, axes=None, kind="all-gather", size=64 * MIB, **more):
    return Collective(kind, size, tuple(group), axes, "", "", **more)


def test_a_gather_over_a_whole_torus():
    everyone = gather(range(64), axes=3)
    ring = 64 * MIB * 63 / 64 / (2 * LINK)  # one ring through all, both ways
    assert everyone.seconds(torus(), "1D") == pytest.approx(ring)
    assert everyone.seconds(torus(), "3D") == everyone.seconds(torus(), "emit") == pytest.approx(ring / 3)
    assert gather(range(64)).seconds(torus(), "emit") == pytest.approx(ring)  # no emitter named: one ring
    assert gather(range(64), kind="all-reduce").seconds(torus(), "1D") == pytest.approx(2 * ring)


def test_a_closed_axis_a_line_and_strangers_on_it():
    whole = torus((16, 16, 16))
    column = gather(range(16))  # all of z: a ring
    assert column.seconds(whole, "1D") == pytest.approx(64 * MIB * 15 / 16 / (2 * LINK))
    part = gather(range(4))  # a quarter of it: a line
    assert part.seconds(whole, "1D") == pytest.approx(64 * MIB * 3 / 4 / LINK)
    apart = gather(range(0, 16, 4))  # closed, but three other groups use the same links
    assert apart.seconds(whole, "1D") == pytest.approx(64 * MIB * 3 / 4 / (2 * LINK / 4))


def test_an_axis_that_does_not_wrap():
    small = torus((2, 4, 4))  # half a cube: x is a line of two
    both = gather([0, 16], axes=1)
    assert both.seconds(small, "emit") == pytest.approx(64 * MIB / 2 / LINK)


def test_halves_of_a_chip_share_its_links():
    places = tuple(Place(0, (x, 0, 0), core) for x in range(4) for core in range(2))
    halves = Torus(CHIPS["tpu7x"], (4, 4, 4), places)
    one = gather(range(0, 8, 2)).seconds(halves, "1D")  # the other cores gather among themselves
    both = gather(range(8)).seconds(halves, "1D")
    assert one == pytest.approx(64 * MIB * 3 / 4 / 100e9) and both == pytest.approx(64 * MIB * 7 / 8 / 200e9)


def test_exchange_is_bound_by_the_middle():
    # A ring of 16: everyone's half goes through 2 links each way, a quarter of n pieces per link.
    exchange = gather(range(16), kind="all-to-all")
    assert exchange.seconds(torus((16, 16, 16)), "emit") == pytest.approx(64 * MIB * 16 / 8 / LINK)


def test_permutation_and_network():
    assert gather((0, 1), kind="collective-permute", hops=2).seconds(torus(), "emit") == pytest.approx(
        2 * 64 * MIB / LINK
    )
    two = torus(slices=2)
    across = gather((0, 64), kind="all-reduce")
    assert across.network(two) and not gather((0, 1)).network(two)
    assert across.seconds(two, "emit") == pytest.approx(64 * MIB / chip("v5p").dcn)
    # A gather over everyone: each device receives its share of the other slice's half.
    assert gather(range(128)).seconds(two, "emit") == pytest.approx(64 * MIB / 64 / 2 / chip("v5p").dcn)


def test_unknown_chip_is_refused():
    with pytest.raises(ValueError, match=r"'v9'.*v5p"):
        chip("v9")


def test_the_share_of_a_kernel_goes_by_its_name():
    v5p = chip("v5p")
    assert v5p.kernel("sqrt_alibi_forward.3") == v5p.kernels[0] < v5p.kernel("sqrt_alibi_d_keys_values") <= 1
    assert all(0 < c.kernel("something_else") < 1 for c in CHIPS.values())
