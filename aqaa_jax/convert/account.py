"""The account of an import: what became of every published tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.checkpoint.header import nbytes
from aqaa_jax.convert.filesets import FileSet

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Account(NamedTuple):
    """Every tensor of one file set under one heading; ``aside`` ones are kept beside the part, in published form."""

    part: str
    origin: str
    used: Shapes
    aside: Shapes
    unexpected: Shapes
    missing: Mapping[str, tuple[int, ...]]
    wrong: Mapping[str, str]  # name -> what is wrong with its shape or dtype

    @classmethod
    def of(cls, one: FileSet, *, casting: bool, keep_unexpected: bool) -> Account:
        """Compare what is there with what should be. ``casting``: any float dtype will do."""
        found = one.published.shapes
        used = {name: found[name] for name in one.expected if name in found}
        rest = {name: tensor for name, tensor in found.items() if name not in used}
        aside = {name: tensor for name, tensor in rest.items() if keep_unexpected or one.known_aside(name)}
        wrong = {name: problem for name, t in used.items() if (problem := _problem(t, one, name, casting))}
        return cls(
            part=one.part,
            origin=str(one.origin),
            used=used,
            aside=aside,
            unexpected={name: tensor for name, tensor in rest.items() if name not in aside},
            missing={name: shape for name, shape in one.expected.items() if name not in found},
            wrong=wrong,
        )

    def text(self) -> str:
        """The report: one line, then the tensors that are not plainly used."""
        size = sum(map(nbytes, self.used.values())) / 1e9
        counts = (
            (self.aside, "aside"),
            (self.missing, "missing"),
            (self.unexpected, "unexpected"),
            (self.wrong, "wrong"),
        )
        lines = [f"{self.part}: {len(self.used)} tensors used ({size:.3f} GB)"]
        lines[0] += "".join(f", {len(group)} {name}" for group, name in counts) + f"; from {self.origin}"
        for group, name in counts:
            for tensor in list(group)[:_SHOWN]:
                lines.append(f"  {name:10} {tensor}  {_described(group[tensor])}")
            if len(group) > _SHOWN:
                lines.append(f"  {name:10} … and {len(group) - _SHOWN} more (all are in the written report)")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Every name with its shape and dtype."""
        groups = {"used": self.used, "aside": self.aside, "unexpected": self.unexpected, "missing": self.missing}
        return {name: {k: _described(v) for k, v in group.items()} for name, group in groups.items()}

    def check(self) -> None:
        """Raise ``ValueError`` naming the first tensor that is missing, misshapen, of a wrong dtype, or unexpected."""
        where = f"{self.origin}: tensor"
        if self.missing:
            name = next(iter(self.missing))
            shape = self.missing[name]
            raise ValueError(f"{where} {name!r} of shape {shape} is missing ({len(self.missing)} missing in all)")
        if self.wrong:
            name = next(iter(self.wrong))
            raise ValueError(f"{where} {name!r} {self.wrong[name]} ({len(self.wrong)} wrong in all)")
        if self.unexpected:
            name = next(iter(self.unexpected))
            raise ValueError(
                f"{where} {name!r} is unexpected ({len(self.unexpected)} in all); the model may not be the one that "
                "this package implements (--keep-unexpected imports the others and keeps these aside)"
            )


_SHOWN = 12


def _described(value: Any) -> str:
    if isinstance(value, str):
        return value
    shape = value if isinstance(value, tuple) else value.shape
    return f"{list(shape)}" if isinstance(value, tuple) else f"{np.dtype(value.dtype)} {list(shape)}"


def _problem(tensor: jax.ShapeDtypeStruct, one: FileSet, name: str, casting: bool) -> str:
    if tuple(tensor.shape) != tuple(one.expected[name]):
        return f"has shape {tuple(tensor.shape)}, expected {tuple(one.expected[name])}"
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return f"has dtype {np.dtype(tensor.dtype)}, expected floats"
    if one.dtype and not casting and str(np.dtype(tensor.dtype)) != one.dtype:
        return (
            f"has dtype {np.dtype(tensor.dtype)}, expected {one.dtype} (torch_dtype in config.json; --dtype converts)"
        )
    return ""
