"""What a compiled program does, read from its text: kernels, collectives with their bytes, and large copies.

    %body (...) {                                      a computation; fused ones are one operation from outside
      %x = bf16[4,128]{1,0} all-reduce(%y), ...        an operation: result, kind, operands
    ENTRY %main (...) {
      %w = (...) while(%t), condition=%cond, body=%body

Knows no model: shapes to look out for are given in bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
COPYING = ("copy", "slice", "dynamic-slice", "transpose", "fusion", "gather", "concatenate", "all-gather")
_ITEM_BITS = re.compile(r"(?:[fsu]|bf|f8e\w*?|c)(\d+)")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|(?:true|false)_computation)=%?([\w.\-]+)|(?:branch|called)_computations=\{([^}]*)\}"
)
_LIMIT = re.compile(r"constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.  nbytes: of its results on one device, largest: of the largest of them.

    times: how often it runs, loops counted.
    """

    kind: str
    nbytes: int
    largest: int
    shapes: tuple[str, ...]
    times: int
    line: str


class CompiledText:
    """The text of a compiled program, computation by computation."""

    def __init__(self, text: str):
        self._computations = _computations(text)
        self._entry = next((name for name, (entry, _) in self._computations.items() if entry), None)
        self.pallas_calls = text.count('custom_call_target="tpu_custom_call"')

    def operations(self) -> Iterator[Operation]:
        """Go through all operations that run, but for the insides of fusions."""
        for name, times in self._times.items():
            for line in self._computations[name][1]:
                if found := _OPERATION.match(line):
                    arrays = _ARRAY.findall(found[2])
                    nbytes = [_nbytes(kind, sizes) for kind, sizes in arrays] or [0]
                    shapes = tuple(f"[{sizes}]" for _, sizes in arrays)
                    yield Operation(found[3], sum(nbytes), max(nbytes), shapes, times, line.strip())

    def collectives(self) -> dict[str, dict[str, int]]:
        """Return per kind how many run, and the bytes that they put out on a device, all runs together."""
        found: dict[str, dict[str, int]] = {}
        for operation in self.operations():
            kind = operation.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                nbytes = operation.nbytes
                if operation.kind != kind and kind != "all-reduce":  # a started one shows its operand next to its result
                    nbytes = operation.largest
                sums = found.setdefault(kind, {"count": 0, "bytes": 0, "largest": 0})
                sums["count"] += operation.times
                sums["bytes"] += operation.times * nbytes
                sums["largest"] = max(sums["largest"], nbytes)
        return found

    def copies(self, limit: int, apart_from: Iterable[str] = ()) -> list[str]:
        """List operations that make an array of `limit` bytes or more, with shapes that are not `apart_from`."""
        known = set(apart_from)
        return [
            operation.line[:200]
            for operation in self.operations()
            if operation.kind in COPYING and operation.nbytes >= limit and not known.intersection(operation.shapes)
        ]

    @functools.cached_property
    def _times(self) -> dict[str, int]:
        """Return how often every computation runs that is no part of a fusion."""
        times: dict[str, int] = {}

        def visit(name: str, runs: int) -> None:
            times[name] = times.get(name, 0) + runs
            for line in self._computations[name][1]:
                operation = _OPERATION.match(line)
                if operation is None or operation[3] == "fusion" or operation[3].startswith(COLLECTIVES):
                    continue
                inner = runs * self._trips(line) if operation[3] == "while" else runs
                for one, several in _CALLED.findall(line):
                    for called in [one] if one else [name.strip().lstrip("%") for name in several.split(",")]:
                        if called in self._computations:
                            visit(called, inner)

        if self._entry is not None:
            visit(self._entry, 1)
        return times

    def _trips(self, line: str) -> int:
        """Return how often a loop runs: what its condition compares with; 1 where that is not a constant."""
        if known := re.search(r"known_trip_count\D*(\d+)", line):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", line)
        lines = self._computations.get(condition[1], (False, []))[1] if condition else []
        if not any("direction=LT" in each for each in lines):
            return 1
        limits = [int(found[1]) for each in lines if "s32[]" in each and (found := _LIMIT.search(each))]
        return max(limits, default=1)


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    """Return name -> (is it the entry, its lines)."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if header is not None:
            lines = []
            found[header[2]] = (header[1] is not None, lines)
        elif line.startswith("  "):
            lines.append(line)
    return found


def _nbytes(kind: str, sizes: str) -> int:
    bits = _ITEM_BITS.fullmatch(kind)
    width = 8 if bits is None else int(bits[1])  # pred and token
    return math.prod(int(size) for size in sizes.split(",") if size) * width // 8
