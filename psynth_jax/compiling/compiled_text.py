"""What a compiled program does, read from its text: kernels, collectives with their bytes, and large copies.

    %body (...) {                                      a computation; fused ones are one operation from outside
      %x = bf16[4,128]{1,0} all-reduce(%y), ...        an operation: result, kind, operands
    ENTRY %main (...) {
      %w = (...) while(%t), condition=%cond, body=%body
      %c = (...) conditional(%p, ...), branch_computations={%no, %yes}        one of them runs

Knows no model: shapes to look out for are given in bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
COPYING = (
    "copy", "copy-start", "slice", "dynamic-slice", "transpose", "fusion", "gather", "concatenate", "all-gather",
    "all-gather-start",
)  # fmt: skip
_ITEM_BITS = re.compile(r"(?:[fsu]|bf|c)(\d+)(?:e\w+)?")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|(?:true|false)_computation)=%?([\w.\-]+)|(?:branch|called)_computations=\{([^}]*)\}"
)
_LIMIT = re.compile(r"constant\((\d+)\)")
_ROOT = re.compile(r"^\s+ROOT %?[\w.\-]+ = .+? (scatter|dynamic-update-slice|fusion)\(")
# What the compiler for TPUs says of an operation whose result takes the memory of its first operand.
_SHARES_FIRST_OPERAND = re.compile(r'"aliasing_operands":\{"lists":\[\{"indices":\["0","(\d+)"\]\}\]\}')


class Result(NamedTuple):
    """An array that an operation makes on one device.  on_chip: in fast memory, where programs keep what they need next."""

    shape: str
    nbytes: int
    on_chip: bool


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.  times: how often it runs, loops counted.  is_conditional: it may not run at all.

    results: a started copy or collective shows its operand next to its result; of a copy only the result is listed.
    """

    kind: str
    results: tuple[Result, ...]
    times: int
    is_conditional: bool
    line: str

    @property
    def nbytes(self) -> int:
        """Bytes that it puts out: of all results, or of the larger of a started collective's operand and result."""
        each = [result.nbytes for result in self.results] or [0]
        return max(each) if self.kind.endswith("-start") and self.kind != "all-reduce-start" else sum(each)


class CompiledText:
    """The text of a compiled program, computation by computation."""

    def __init__(self, text: str):
        self._computations = _computations(text)
        self._entry = next((name for name, (entry, _) in self._computations.items() if entry), None)
        self.pallas_calls = text.count('custom_call_target="tpu_custom_call"')

    def operations(self) -> Iterator[Operation]:
        """Go through all operations that run, but for the insides of fusions."""
        for (name, is_conditional), times in self._times.items():
            for line in self._computations[name][1]:
                if found := _OPERATION.match(line):
                    results = tuple(
                        Result(f"[{sizes}]", _nbytes(kind, sizes), "S(1)" in layout)
                        for kind, sizes, layout in _ARRAY.findall(found[2])
                    )
                    results = results[:1] if found[3] == "copy-start" else results
                    yield Operation(found[3], results, times, is_conditional, line.strip())

    def collectives(self, *, conditional: bool = False) -> dict[str, dict[str, int]]:
        """Return per kind how many run, and the bytes that they put out on a device, all runs together.

        conditional: of those in branches that may not be taken; else of all others.
        """
        found: dict[str, dict[str, int]] = {}
        for operation in self.operations():
            kind = operation.kind.removesuffix("-start")
            if kind in COLLECTIVES and operation.is_conditional == conditional:
                sums = found.setdefault(kind, {"count": 0, "bytes": 0, "largest": 0})
                sums["count"] += operation.times
                sums["bytes"] += operation.times * operation.nbytes
                sums["largest"] = max(sums["largest"], operation.nbytes)
        return found

    def copies(self, limit: int, apart_from: Iterable[str] = ()) -> list[str]:
        """List operations that make an array of `limit` bytes or more in main memory, of a shape not in `apart_from`.

        What is brought into fast memory before it is used is read once, as it would be otherwise, and so is not listed.
        Neither is a fusion that writes some elements of its first operand where they lie.
        """
        known = set(apart_from)
        found = []
        for operation in self.operations():
            if operation.kind not in COPYING or self._writes_in_place(operation.line):
                continue
            if any(x.nbytes >= limit and not x.on_chip and x.shape not in known for x in operation.results):
                found.append(operation.line[:200])
        return found

    def _writes_in_place(self, line: str) -> bool:
        """Whether a fusion ends with a scatter or an update, and its result is its first operand's memory."""
        shared = _SHARES_FIRST_OPERAND.search(line)
        operands = re.search(r" fusion\(([^)]*)\)", line)
        if shared is None or operands is None or int(shared[1]) != operands[1].count("%"):
            return False
        while called := re.search(r"calls=%?([\w.\-]+)", line):
            roots = [_ROOT.match(each) for each in self._computations.get(called[1], (False, []))[1]]
            root = next((each for each in roots if each is not None), None)
            if root is None or root[1] != "fusion":
                return root is not None
            line = root.string
        return False

    @functools.cached_property
    def _times(self) -> dict[tuple[str, bool], int]:
        """Return how often every computation runs that is no part of a fusion, apart for those that may not run at all."""
        times: dict[tuple[str, bool], int] = {}

        def visit(name: str, runs: int, is_conditional: bool) -> None:
            key = name, is_conditional
            times[key] = times.get(key, 0) + runs
            for line in self._computations[name][1]:
                operation = _OPERATION.match(line)
                if operation is None or operation[3] == "fusion" or operation[3].startswith(COLLECTIVES):
                    continue
                inner = runs * self._trips(line) if operation[3] == "while" else runs
                for one, several in _CALLED.findall(line):
                    for called in [one] if one else [name.strip().lstrip("%") for name in several.split(",")]:
                        if called in self._computations:
                            visit(called, inner, is_conditional or operation[3] == "conditional")

        if self._entry is not None:
            visit(self._entry, 1, False)
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
