"""Both sides of ``make bench`` measure every item; the peers themselves live in another environment."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def items() -> set[str]:
    tree = ast.parse((FOLDER / "items.py").read_text())
    (table,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ITEMS")
    return {key.value for key in table.keys}


@pytest.mark.parametrize("side", ["ours.py", "peers.py"])
def test_a_side_builds_every_item(side):
    tree = ast.parse((FOLDER / side).read_text())
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    (table,) = (n for n in ast.walk(tree) if isinstance(n, ast.DictComp))
    listed = {name.id for name in table.generators[0].iter.elts}
    assert listed == items() <= functions
