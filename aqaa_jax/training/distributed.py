"""Several processes as one run: joining them, and talking before there are devices.

The launcher says what to join in ``AQAA_DISTRIBUTED``: ``auto`` on TPU hosts, which find each other, or
``I/N@HOST:PORT``, process I of N. Without it there is one process and everything here is local.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # its client has no public name
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from aqaa_jax.sharding.partition import to_spec

Tree = TypeVar("Tree")
VARIABLE = "AQAA_DISTRIBUTED"
HOURS_24 = 24 * 3600.0
ARENAS, M_ARENA_MAX = 2, -8  # the second is glibc's number for the first


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes of the launcher, if there are any; to be entered before anything touches a device.

    Threads share two arenas of glibc's allocator from here on, unless ``MALLOC_ARENA_MAX`` says how many: every save
    has threads of its own, and with the default of eight arenas per core resident memory grew by 60 % between the 10th
    and the 60th save of 60 MiB, with two by 4 % in 40. An error inside ends this process at once with code 2 (bad
    values) or 1: leaving as usual would wait for the other processes, which wait for this one. Raises ``ValueError``
    for a variable of another form.
    """
    with contextlib.suppress(AttributeError, OSError):  # no glibc, no arenas
        if "MALLOC_ARENA_MAX" not in os.environ:
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    value = os.environ.get(VARIABLE, "")
    if value == "auto":
        jax.distributed.initialize()
    elif value:
        found = re.fullmatch(r"(\d+)/(\d+)@([^/@]+:\d+)", value)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(f"{VARIABLE} is {value!r}; expected auto or I/N@HOST:PORT with I below N")
        jax.distributed.initialize(found[3], num_processes=int(found[2]), process_id=int(found[1]))
    try:
        yield
    except Exception as error:
        if processes() == 1:
            raise
        refused = isinstance(error, ValueError | OSError)
        print(error if refused else traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(2 if refused else 1)


def processes() -> int:
    """How many processes were joined; asks no device."""
    return jax_distributed.global_state.num_processes if jax.distributed.is_initialized() else 1


def process() -> int:
    """The number of this one; asks no device."""
    return jax_distributed.global_state.process_id if jax.distributed.is_initialized() else 0


def first() -> bool:
    """Whether this process is the one that speaks and writes what only one should."""
    return process() == 0


def exchange(topic: str, mine: str, *, seconds: float = 600.0) -> list[str]:
    """What each process says about ``topic`` (used once), in their order.

    It goes through the coordinator; no device takes part. Raises ``OSError`` naming a process that said nothing for
    ``seconds``.
    """
    client = jax_distributed.global_state.client
    if client is None:
        return [mine]
    client.key_value_set(f"aqaa/{topic}/{process()}", mine)
    said = []
    for number in range(processes()):
        try:
            said.append(client.blocking_key_value_get(f"aqaa/{topic}/{number}", int(1000 * seconds)))
        except jax.errors.JaxRuntimeError as error:
            raise OSError(f"process {number} said nothing about {topic} for {seconds:g} s") from error
    return said


def barrier(name: str, *, seconds: float = HOURS_24) -> None:
    """Wait until every process is here; ``name`` is used once."""
    client = jax_distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(f"aqaa/{name}", int(1000 * seconds))


def together(name: str) -> None:
    """Wait until every process is here, over its devices; ``name`` may be used again."""
    if processes() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(number: int) -> int:
    """What the first process calls with."""
    return number if processes() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def whole(tree: Tree) -> Tree:
    """``tree`` with every array whole, in the first process alone; the others, and one alone, get ``tree`` itself.

    One array after another is put together on the devices and copied to the host, so that there is never more than one.
    """
    if processes() == 1:
        return tree

    def one(x: Any) -> Any:
        place = NamedSharding(x.sharding.mesh, to_spec((), (), x.sharding.mesh, {}, name="whole"))
        everywhere = jax.jit(lambda a: a, out_shardings=place)(x)
        return np.asarray(everywhere.addressable_data(0)) if first() else x

    return jax.tree.map(one, tree)
