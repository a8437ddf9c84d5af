"""``--config=FILE --config.field=value``, shared by the commands that take a config file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags


def read(
    command: str, argv: Sequence[str], define: Callable[[flags.FlagValues], Any]
) -> tuple[dict[str, Any], flags.FlagValues]:
    """The values of the config file with what the command line overrides, and the flags that ``define`` declared.

    Raises ``ValueError`` in one line for a missing file, an unknown field or flag, or a stray argument.
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "the config", flag_values=values, lock_config=True, sys_argv=[command, *argv]
    )
    define(values)
    try:
        rest = values([command, *argv])
        # A file that cannot be loaded is reported by the first look into the config.
        chosen = None if config.value is None else config.value.to_dict()
    except (AttributeError, KeyError) as error:
        name = str(error).strip("\"'")
        raise ValueError(f"no such config field: {name!r}") from None
    except (flags.Error, TypeError, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}")
    if chosen is None:
        raise ValueError("--config=FILE is required, for instance --config=configs/pocket.py")
    return chosen, values
