"""Compiled training steps in files.

``aqaa plan --save`` writes one; the trainer runs it if it is the step that it would compile itself. A file is a line of
JSON (key, and what went into it), then the executable. It is unpickled on loading, which can run anything: load files
of your own only, as with every pickle.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from aqaa_jax import atomic
from aqaa_jax.config import DecoderConfig, VocabConfig, to_dict
from aqaa_jax.training.config import StageConfig
from aqaa_jax.version import __version__

# Of the loop's config: what says when to log, save or stop, and where, is not compiled in.
_NOT_COMPILED = (
    *("seed", "log_every", "save_every", "keep", "keep_every", "evaluate_every", "keep_best", "sample_every"),
    *("profile", "tensorboard", "ahead", "executable"),
)


def versions() -> dict[str, str]:
    """Of everything that a compiled program depends on; "none" for what is not installed."""
    found = {"aqaa_jax": __version__}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def description(
    stage: str,
    decoder: DecoderConfig,
    vocab: VocabConfig,
    config: StageConfig,
    flags: Mapping[str, str],
    devices: tuple[str, int],
) -> dict[str, Any]:
    """All that a compiled step depends on, JSON-ready; ``devices`` is their kind and how many."""
    fields = to_dict(config)
    loop = {k: v for k, v in fields.pop("loop").items() if k not in _NOT_COMPILED}
    return {
        "stage": stage, "decoder": to_dict(decoder), "vocab": to_dict(vocab), "config": fields | {"loop": loop},
        "flags": dict(sorted(flags.items())), "versions": versions(), "devices": list(devices),
    }  # fmt: skip


def key_of(described: Mapping[str, Any]) -> str:
    """Sixteen hex digits of a description."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def save(path: str | Path, compiled: jax.stages.Compiled, described: Mapping[str, Any]) -> str:
    """Write ``compiled`` under the key of what it was made of; returns the key."""
    payload, _, _ = serialize_executable.serialize(compiled)
    header = json.dumps({"key": key_of(described), "of": dict(described)}, sort_keys=True)
    with atomic.written(path) as part:
        part.write_bytes(header.encode() + b"\n" + payload)
    return key_of(described)


def load(
    path: str | Path,
    described: Mapping[str, Any],
    step: Callable[..., Any],
    arguments: Sequence[Any],
    devices: Sequence[Any],
) -> Any:
    """The executable of ``path`` on ``devices`` (of the mesh, in its order), to be called like ``step``.

    ``arguments`` are of the shapes that it takes. Raises ``ValueError`` naming what differs if it was made of anything
    else than ``described``.
    """
    with Path(path).open("rb") as file:
        try:
            header = json.loads(file.readline())
            theirs = json.loads(json.dumps(header["of"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: not an executable of `aqaa plan --save`") from None
        if header["key"] != key_of(described):
            differing = sorted(_differing(theirs, json.loads(json.dumps(described))))
            raise ValueError(f"{path}: made of another {', '.join(differing) or 'description'}; plan this run again")
        payload = file.read()
    inputs = jax.tree.structure((tuple(arguments), {}))
    outputs = jax.tree.structure(jax.eval_shape(step, *arguments))
    return serialize_executable.deserialize_and_load(
        payload, inputs, outputs, backend=devices[0].client, execution_devices=list(devices)
    )


def saved_step(
    path: str | Path, described: Mapping[str, Any], step: Callable[..., Any], devices: Sequence[Any]
) -> Callable[..., Any]:
    """``step`` as it is in ``path``, loaded when its first arguments are there. Raises then as ``load`` does."""
    loaded: list[Any] = []

    def run(*arguments: Any) -> Any:
        if not loaded:
            loaded.append(load(path, described, step, arguments, devices))
        return loaded[0](*arguments)

    return run


def _differing(theirs: Any, ours: Any, where: str = "") -> set[str]:
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return set() if theirs == ours else {where}
    keys = theirs.keys() | ours.keys()
    return {name for k in keys for name in _differing(theirs.get(k), ours.get(k), f"{where}.{k}" if where else k)}
