"""What the tilings of each kernel look like, and how tables are written as JSON.

    {"format": 1, "device_kind": "cpu", "entries": {
        "xla tokens=1 group=3 kv_heads=3 width=64 itemsize=4 cached=4 slots=2048": {"tiles": {"tokens": 1, "slots": 1024}}}}

An entry may say more, such as how it was measured; only its tiles are read here.  Tables that come with the library lie
next to this file, named after the kind of device.  Reads no other files and knows no folder but this one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from psynth_jax.errors import UserError
from psynth_jax.ops.branch_attention import tuning, tuning_gpu, tuning_xla
from psynth_jax.ops.branch_attention.tuned.table import Key, Table, bucket
from psynth_jax.ops.branch_attention.tuning import Tiles
from psynth_jax.ops.branch_attention.tuning_gpu import GpuTiles
from psynth_jax.ops.branch_attention.tuning_xla import XlaTiles

FORMAT = 1
SHIPPED = importlib.resources.files("psynth_jax.ops.branch_attention.tuned")


@dataclasses.dataclass(frozen=True)
class Form:
    """Tilings of one kernel.

    rounded, exact: names of the sizes in its keys; the former are rounded up to a power of two.  problem(tiling, sizes) says
    why a tiling cannot be that of a key; candidates(sizes, heuristic) are worth measuring.
    """

    tiling: type[Any]
    rounded: tuple[str, ...]
    exact: tuple[str, ...]
    problem: Callable[[Any, Mapping[str, int]], str | None]
    candidates: Callable[[Mapping[str, int], Any], Iterator[Any]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sizes in a key, in order."""
        return self.rounded[:1] + self.exact + self.rounded[1:]

    def key(self, kernel: str, **sizes: int) -> Key:
        """Return the key of a call with these sizes."""
        return Key.of(kernel, **{name: bucket(sizes[name]) if name in self.rounded else sizes[name] for name in self.names})


_TPU = Form(Tiles, ("tokens", "slots"), ("group", "kv_heads", "width", "itemsize"), tuning.problem, tuning.candidates)
_GPU = Form(
    GpuTiles, ("rows", "slots"), ("heads", "width", "itemsize", "cached"), tuning_gpu.problem, tuning_gpu.candidates
)  # fmt: skip
_XLA = Form(
    XlaTiles, ("tokens", "slots"), ("group", "kv_heads", "width", "itemsize", "cached"),
    tuning_xla.problem, tuning_xla.candidates,
)  # fmt: skip


# Kernel, as it is called in keys -> its form.
FORMS = {"pallas_tpu": _TPU, "pallas_gpu": _GPU, "xla": _XLA}


def slug(device_kind: str) -> str:
    """Return the name, without suffix, of the file with the tilings of a kind of device."""
    return re.sub(r"[^a-z0-9]+", "-", device_kind.lower()).strip("-")


def candidates(key: Key, heuristic: Any) -> list[Any]:
    """List the tilings of a key that are worth measuring."""
    return list(FORMS[key.kernel].candidates(dict(key.sizes), heuristic))


@functools.cache
def shipped(device_kind: str) -> Table:
    """Return the tilings that come with the library for a kind of device; often there are none."""
    file = SHIPPED / f"{slug(device_kind)}.json"
    if not file.is_file():
        return Table(device_kind, {})
    return read(file.read_text(encoding="utf-8"), str(file), device_kind)


def read(text: str, file: str | Path, device_kind: str) -> Table:
    """Read a table.

    Raises `UserError`, naming the file and the key, for what is damaged, does not fit, or is of another format or device.
    """
    raw = read_json(text, file, device_kind)
    return Table(device_kind, dict(_entry(key, entry, file) for key, entry in raw["entries"].items()))


def read_json(text: str, file: str | Path, device_kind: str) -> dict[str, Any]:
    """Read the JSON of a table, checking all but its entries; see `read`."""
    again = "delete it, and tune again with: psynth bench kernel --tune"
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, lists thousands deep
        raise UserError(f"{file} is no table of tilings: not JSON ({error}); {again}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("entries"), dict):
        raise UserError(f"{file} is no table of tilings: it has no entries; {again}")
    if raw.get("format") != FORMAT:
        raise UserError(f"{file} has format {raw.get('format')!r}; this version reads format {FORMAT}: {again}")
    if raw.get("device_kind") != device_kind:
        raise UserError(f"{file} has tilings for {raw.get('device_kind')!r}; the device here is {device_kind!r}: {again}")
    return raw


def _entry(text: str, entry: object, file: str | Path) -> tuple[Key, Any]:
    """Check an entry; return its key and tiling."""

    def wrong(what: str) -> UserError:
        return UserError(f"{file}: the entry {text!r} {what}; delete it")

    key = _key(text)
    if isinstance(key, str):
        raise wrong(f"has {key}")
    form = FORMS[key.kernel]
    numbers = entry.get("tiles") if isinstance(entry, dict) else None
    expected = [field.name for field in dataclasses.fields(form.tiling)]
    if not isinstance(numbers, dict) or sorted(numbers) != sorted(expected):
        raise wrong(f"has not the tiles {', '.join(expected)}")
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise wrong(f"has {name} {value!r}, which is no positive integer")
    tiling = form.tiling(**numbers)
    if problem := form.problem(tiling, dict(key.sizes)):
        raise wrong(f"does not fit: {problem}")
    return key, tiling


def _key(text: str) -> Key | str:
    """Read a key, or say what is wrong with it."""
    kernel, *fields = text.split(" ")
    if kernel not in FORMS:
        return f"an unknown kernel: there are {', '.join(FORMS)}"
    form = FORMS[kernel]
    found = re.fullmatch(" ".join(rf"{name}=([1-9]\d{{0,17}})" for name in form.names), " ".join(fields))
    if found is None:
        return f"a key that is not {kernel} {' '.join(f'{name}=…' for name in form.names)}"
    key = Key.of(kernel, **dict(zip(form.names, map(int, found.groups()), strict=True)))
    odd = [name for name, size in key.sizes if name in form.rounded and size != bucket(size)]
    return f"a key whose {odd[0]} is no power of two" if odd else key
