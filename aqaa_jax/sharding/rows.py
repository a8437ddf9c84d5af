"""Which rows of a batch this process has to make."""

from __future__ import annotations

from jax.sharding import Mesh, NamedSharding

from aqaa_jax.sharding.axes import BATCH
from aqaa_jax.sharding.partition import to_spec
from aqaa_jax.sharding.rules import Rules


def share_of_rows(rows: int, mesh: Mesh, rules: Rules) -> tuple[int, int]:
    """``(i, n)``: the devices of this process hold the ``i``-th of ``n`` equal blocks of the rows of a batch.

    ``(0, 1)``, everything, where what they hold is no such block. Raises ``ValueError`` as ``to_spec``.
    """
    place = NamedSharding(mesh, to_spec((BATCH,), (rows,), mesh, rules, name="batch"))
    held = place.addressable_devices_indices_map((rows,)).values()
    spans = [index[0].indices(rows)[:2] for index in held if index is not None]
    first, size = min(a for a, _ in spans), len({i for a, b in spans for i in range(a, b)})
    block = first % size == 0 and rows % size == 0 and max(b for _, b in spans) == first + size
    return (first // size, rows // size) if block else (0, 1)
