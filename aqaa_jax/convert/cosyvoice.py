"""``cosyvoice.yaml``: the values of the published vocoder, without running the constructors it names.

The file is HyperPyYAML: ``!new:``, ``!name:`` and ``!apply:`` tags are dropped (a mapping stays a mapping) and
``!ref <key>`` is replaced by the value of that key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from aqaa_jax.config import FlowConfig, HiftConfig
from aqaa_jax.convert import flow, hift

FILE = "cosyvoice.yaml"
_REFERENCE = re.compile(r"<([\w.\[\]]+)>")
Config = TypeVar("Config")


class _Reference(str):
    """What stood behind ``!ref``."""


class _Loader(yaml.SafeLoader):
    pass


def _tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return _Reference(node.value) if suffix == "ref" else node.value


_Loader.add_multi_constructor("!", _tagged)


def read(path: Path) -> dict[str, Any]:
    """The values of the file. Raises ``FileNotFoundError`` or ``ValueError`` naming it, and a reference to nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; the sizes of flow.pt and hift.pt are in it")
    try:
        values = yaml.load(path.read_text(), _Loader)  # a safe loader with tags dropped
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}; expected a mapping")
    return _resolved(values, values, path)


def _resolved(value: Any, top: Mapping[str, Any], path: Path) -> Any:
    if isinstance(value, _Reference):
        match = _REFERENCE.fullmatch(value.strip())
        if match is None:  # an expression, of something that is not read here
            return str(value)
        if match.group(1) not in top:
            raise ValueError(f"{path}: refers to {match.group(1)!r}, which it does not have")
        return _resolved(top[match.group(1)], top, path)
    if isinstance(value, dict):
        return {k: _resolved(v, top, path) for k, v in value.items()}
    return [_resolved(v, top, path) for v in value] if isinstance(value, list) else value


def flow_config(path: Path) -> FlowConfig:
    """``FlowConfig`` of the file's ``flow`` section, with its mel settings. Raises ``ValueError`` naming a field."""
    values = read(path)
    section = _section(values, "flow", path)
    decoder = dict(_section(section, "decoder", path))
    parameters = _section(decoder, "cfm_params", path)
    decoder["cfm_params"] = parameters.get("content", parameters)
    mel = section.get("mel_feat_conf", values.get("feat_extractor"))
    section = {**section, "decoder": decoder, **({"mel_feat_conf": mel} if isinstance(mel, dict) else {})}
    return _config(flow.config_from_upstream, section, path, "flow")


def hift_config(path: Path) -> HiftConfig:
    """``HiftConfig`` of the file's ``hift`` section. Raises ``ValueError`` naming file and field."""
    return _config(hift.config_from_upstream, _section(read(path), "hift", path), path, "hift")


def _section(values: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = values.get(name)
    if not isinstance(section, dict):
        raise ValueError(f"{path}: has no section {name!r}")
    return section


def _config(build: Callable[[Mapping[str, Any]], Config], section: dict[str, Any], path: Path, name: str) -> Config:
    try:
        return build(section)
    except KeyError as error:
        raise ValueError(f"{path}: section {name!r} lacks {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: section {name!r}: {error}") from None
