"""Nested dicts to frozen dataclasses and back: how a config file becomes typed values."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build dataclass ``cls`` from a nested mapping (dict or ConfigDict).

    Raises ``ValueError`` naming an unknown key and the expected ones. Lists become tuples.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise ValueError(f"unknown config key {where + key!r}; {cls.__name__} has {', '.join(names)}")
        out[key] = _convert(hints[key], value, f"{where}{key}.")
    return cls(**out)


def to_dict(value: Any) -> Any:
    """The plain nested dict of a config dataclass: the inverse of ``from_dict``, JSON-ready."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_dict(v) for v in value]
    if isinstance(value, Mapping):
        return {k: to_dict(v) for k, v in value.items()}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where=where)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):
            raise ValueError(f"config key {where.rstrip('.')!r} is {value!r}; expected a list")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, v, where) for v in value)
    if typing.get_origin(hint) is Mapping:
        inner = typing.get_args(hint)[1]
        return {k: _convert(inner, v, f"{where}{k}.") for k, v in value.items()}
    expected = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}.get(hint)
    if expected and (not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool)):
        raise ValueError(f"config key {where.rstrip('.')!r} is {value!r}; expected {getattr(hint, '__name__', hint)}")
    return float(value) if hint is float else value
