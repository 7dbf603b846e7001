"""Benchmarks by name: the seven of this library, and those that other packages bring.

A package declares its own in the entry point group `psynth_jax.benchmarks`:

    [project.entry-points."psynth_jax.benchmarks"]
    my_bench = "my_package.my_module:MyBench"        a subclass of Benchmark

Ours are in a table, too, so that a checkout whose installed metadata are old has them all; a name
of the table always means ours.
"""

from __future__ import annotations

import importlib
import importlib.metadata

from psynth_jax.errors import InputError
from psynth_jax.evaluation.benchmarks.benchmark import Benchmark

GROUP = "psynth_jax.benchmarks"

_HERE = "psynth_jax.evaluation.benchmarks"
_OURS = {
    "aime24": (f"{_HERE}.aime", "AIME24"),
    "aime25": (f"{_HERE}.aime", "AIME25"),
    "gpqa": (f"{_HERE}.gpqa", "GPQA"),
    "gsm8k": (f"{_HERE}.gsm8k", "GSM8K"),
    "humaneval_plus": (f"{_HERE}.humaneval", "HumanEvalPlus"),
    "mbpp_plus": (f"{_HERE}.mbpp", "MBPPPlus"),
    "medqa": (f"{_HERE}.medqa", "MedQA"),
}


def names() -> list[str]:
    """Return the names of all benchmarks, in order of the alphabet.  Nothing is imported for it."""
    return sorted({*_OURS, *_entry_points()})


def benchmark(name: str, data: str | None = None, revision: str | None = None) -> Benchmark:
    """Return a benchmark by its name.

    Args:
      name: one of `names()`.
      data: a file of its rows; None reads them from the hub.
      revision: of the data set on the hub; None is the one that the benchmark names.

    Raises:
      InputError: there is no such benchmark, or the package that brings it is broken.
    """
    return _class(name)(data, revision)


def _class(name: str) -> type[Benchmark]:
    if name in _OURS:
        module, attribute = _OURS[name]
        found: object = getattr(importlib.import_module(module), attribute)
    elif name in _entry_points():
        found = _loaded(_entry_points()[name])
    else:
        raise InputError(f"there is no benchmark {name!r}; there are {', '.join(names())}")
    if not isinstance(found, type) or not issubclass(found, Benchmark):
        raise InputError(f"the entry point {name!r} of {GROUP} is no subclass of Benchmark")
    return found


def _loaded(entry_point: importlib.metadata.EntryPoint) -> object:
    try:
        return entry_point.load()
    except Exception as error:  # noqa: BLE001  it runs the code of another package
        package = entry_point.dist.name if entry_point.dist is not None else "an unknown package"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        named = f"benchmark {entry_point.name!r} of {package} ({entry_point.value})"
        raise InputError(f"{named} cannot be loaded: {reason}") from None


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    found = importlib.metadata.entry_points(group=GROUP)
    return {entry_point.name: entry_point for entry_point in found}
