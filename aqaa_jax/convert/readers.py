"""Published tensors by name, listed from headers and read one at a time, whatever file holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.checkpoint.shards import ShardReader

_REMAP = 1 << 28  # bytes read through a memory map before it is dropped: its pages count as resident memory
_FIRST_BYTES = (b"PK\x03\x04", b"\x80")  # a zip archive, or a bare pickle of torch before 1.6


class Reader(Protocol):
    """Tensors by name; ``shapes`` without reading any."""

    @property
    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]: ...

    def read(self, name: str, /) -> np.ndarray: ...

    def close(self) -> None: ...


class Lazy:
    """A reader made of a listing and a function."""

    def __init__(self, shapes: Mapping[str, jax.ShapeDtypeStruct], read: Callable[[str], np.ndarray]):
        self.shapes, self._read = shapes, read

    def read(self, name: str, /) -> np.ndarray:
        """One tensor, whole."""
        return self._read(name)

    def close(self) -> None: ...


def in_memory(arrays: Mapping[str, np.ndarray]) -> Lazy:
    """A reader of arrays that are there already."""
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
    return Lazy(shapes, lambda name: arrays[name])


def merged(*readers: Reader) -> Lazy:
    """The tensors of several readers, whose names differ."""
    owner = {name: reader for reader in readers for name in reader.shapes}
    shapes = {name: reader.shapes[name] for name, reader in owner.items()}
    return Lazy(shapes, lambda name: owner[name].read(name))


def open_weights(path: Path) -> Reader:
    """A reader of a ``.safetensors`` or ``.pt`` file."""
    return ShardReader(path) if path.suffix == ".safetensors" else TorchReader(path)


class TorchReader:
    """Tensors of a ``.pt`` state dict, loaded weights-only and mapped, not read, where it is a zip archive.

    Raises ``ValueError`` naming the file if it is not a state dict, is truncated, or holds anything but plain data
    (a pickle with code in it is refused unexecuted); or if torch is not installed.
    """

    def __init__(self, path: Path):
        self._path, self._since = path, 0
        with path.open("rb") as file:
            if not file.read(4).startswith(_FIRST_BYTES):
                raise ValueError(f"{path}: not a PyTorch file (neither a zip archive nor a pickle)")
        self._state = self._load()
        self.shapes = {n: jax.ShapeDtypeStruct(tuple(t.shape), _dtype(t)) for n, t in self._state.items()}

    def read(self, name: str) -> np.ndarray:
        """A copy of one tensor."""
        tensor = self._state[name].detach()
        dtype = _dtype(tensor)
        if dtype == jnp.bfloat16:
            import torch  # pyright: ignore[reportMissingImports]

            array = np.array(tensor.contiguous().view(torch.int16).numpy()).view(dtype)
        else:
            array = np.array(tensor.numpy())
        self._since += array.nbytes
        if self._since > _REMAP:
            self._state, self._since = {}, 0
            self._state = self._load()
        return array

    def close(self) -> None:
        """Drop the memory map."""
        self._state = {}

    def _load(self) -> Mapping[str, Any]:
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(f"{self._path}: reading it needs torch: pip install 'aqaa_jax[torch]'") from None
        with self._path.open("rb") as file:
            zipped = file.read(4) == _FIRST_BYTES[0]
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # torch raises many kinds; none of them names the file
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{self._path}: not a state dict that can be loaded weights-only ({reason})") from None
        state = state.get("state_dict", state) if isinstance(state, Mapping) else state
        if not isinstance(state, Mapping) or not state:
            raise ValueError(f"{self._path}: holds {type(state).__name__}; expected a state dict of tensors")
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{self._path}: entry {name!r} is {type(value).__name__}; expected a tensor")
        return state


def _dtype(tensor: Any) -> np.dtype:
    return np.dtype(getattr(jnp, str(tensor.dtype).removeprefix("torch.")))
