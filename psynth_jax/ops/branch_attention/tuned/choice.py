"""Which tiling a call gets: a measured one where there is one for its like, else the heuristic's.

Calls ask when they are traced.  The table in use is part of what `jax.jit` knows a program by: another one, another trace.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from psynth_jax.ops.branch_attention.tuned.forms import shipped
from psynth_jax.ops.branch_attention.tuned.table import Key, Table

Tiling = TypeVar("Tiling")

_table = jax.make_user_context(None)
_listener = jax.make_user_context(None)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A call that asked for a tiling: its key, what the heuristic says, and what it got.

    take(tiling) returns what the call makes of a tiling for its key; None: it does not fit.
    """

    key: Key
    heuristic: Any
    chosen: Any
    take: Callable[[Any], Any]


def local_kind() -> str:
    """Return the kind of the first device here, as JAX names it."""
    return str(jax.local_devices()[0].device_kind)


def install(table: Table | None) -> None:
    """Let calls take their tilings from `table` from now on, in all threads; None: from what comes with the library.

    A table is ignored on devices of another kind than its own.

    Tilings decide which program runs, and in which order numbers are added.  Where several processes run one program, all of
    them must install the same table, or none: take it from one file that all of them read.  Programs that have been compiled
    ahead of time keep their tilings.
    """
    _table.set_global(table)


def installed() -> Table:
    """Return the table that calls take their tilings from."""
    kind = local_kind()
    table = _table.value
    if table is None:
        return shipped(kind)
    return table if table.device_kind == kind else Table(kind, {})


@contextlib.contextmanager
def using(table: Table) -> Iterator[None]:
    """Take tilings from this table alone inside of the block, in this thread."""
    with _table(table):
        yield


def asked(run: Callable[[], object]) -> list[Asked]:
    """Call `run`; return what was asked while it traced, each key once.  What has been traced before is traced anew."""
    listener = _Listener({})
    with _listener(listener):
        run()
    return list(listener.found.values())


@dataclasses.dataclass(frozen=True, eq=False)  # no listener equals another: nothing that was traced for one is reused
class _Listener:
    found: dict[Key, Asked]


def choose(key: Key, heuristic: Tiling, take: Callable[[Any], Tiling | None]) -> Tiling:
    """Return the tiling of a call: the table's, if it has one for the key and it fits the call, else the heuristic's.

    Args:
      take: see `Asked`.
    """
    found = installed().tilings.get(key)
    chosen = heuristic if found is None else take(found) or heuristic
    listener = _listener.value
    if listener is not None:
        listener.found[key] = Asked(key, heuristic, chosen, take)
    return chosen
