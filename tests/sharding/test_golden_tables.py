"""Every weight of every config under every strategy: shape, dtype and PartitionSpec, compared with stored tables.

``python tests/sharding/test_golden_tables.py`` writes ``tests/sharding/data/`` again: read its diff. No array is made.
"""

import importlib.util
import re
from pathlib import Path

import pytest

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import MeshConfig, SystemConfig, from_dict
from aqaa_jax.parts import abstract, builders
from aqaa_jax.sharding.mesh import abstract_mesh
from aqaa_jax.sharding.partition import shardings
from aqaa_jax.sharding.rules import MESH_AXES, STRATEGIES

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
TWO = dict.fromkeys(MESH_AXES, 2)
# Sizes of the mesh axes that a strategy uses, for the decoder; codec and vocoder are small and go over two of each.
DECODER_MESH = {
    "pocket": TWO,
    "step_3b": {"data": 2, "fsdp": 64, "expert": 2, "context": 2, "tensor": 4},
    "aqaa_130b": {"data": 4, "fsdp": 256, "expert": 2, "context": 4, "tensor": 8},
    "aqaa_moe": {"data": 2, "fsdp": 64, "expert": 8, "context": 4, "tensor": 8},
}


def system(name: str) -> SystemConfig:
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config().to_dict()
    return from_dict(SystemConfig, values.get("system", values))


def specs(model, sizes, table):
    """Name -> the spec of its weight, of a mesh with the axes that ``table`` uses, as text."""
    used = {axis for axes in table.values() for axis in axes}
    places = shardings(model, abstract_mesh(MeshConfig(**{a: n for a, n in sizes.items() if a in used})), table)
    entry = lambda e: "-" if e is None else e if isinstance(e, str) else "+".join(e)  # noqa: E731
    return {name: " ".join(entry(e) for e in place.spec) or "-" for name, place in named_weights(places).items()}


def collapsed(rows):
    """Rows (name, rest) whose names differ in numbers only become one, with the number of them."""
    groups = {}
    for name, rest in rows:
        groups.setdefault((re.sub(r"\b\d+\b", "*", name), rest), []).append(name)
    return [f"{pattern if len(names) > 1 else names[0]} {rest}" + f" x{len(names)}" * (len(names) > 1)
            for (pattern, rest), names in groups.items()]  # fmt: skip


def render(name: str) -> str:
    """The table of a config: each weight with the number of its row of specs, then these rows."""
    config, kinds, lines = system(name), {}, [f"{name}: weight dtype[shape] #specs xcount"]
    for part in builders(config):
        model, sizes = abstract(config, part), DECODER_MESH[name] if part == "decoder" else TWO
        by_strategy = {s: specs(model, sizes, table) for s, table in STRATEGIES.items()}
        rows = []
        for weight, x in named_weights(model).items():
            kind = tuple(found[weight] for found in by_strategy.values())
            number = kinds.setdefault(kind, len(kinds))
            rows.append((f"{part}.{weight}", f"{x.dtype}[{','.join(map(str, x.shape))}] #{number}"))
        lines += collapsed(rows)
    for kind, number in kinds.items():
        lines.append(f"#{number}")
        for spec in dict.fromkeys(kind):
            of = [s for s, one in zip(STRATEGIES, kind, strict=True) if one == spec]
            lines.append(f"  {spec} : {' '.join(of)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", DECODER_MESH)
def test_weights_and_their_places_are_those_of_the_table(name):
    assert render(name).splitlines() == (DATA / f"{name}.txt").read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for config_name in DECODER_MESH:
        (DATA / f"{config_name}.txt").write_text(render(config_name), encoding="utf-8")
