"""Values to JSON and back: types stay what they are, and nothing is too deep or too large."""

from __future__ import annotations

import collections
import json
import math
from typing import Any

import numpy as np
import pytest

from psynth_jax.evaluation.benchmarks.sandboxed.values import DEEPEST, Encoder, Large, Other, TooLargeError, decode, reported

VALUES = [
    None,
    True,
    0,
    -(2**53) + 1,
    2**53,
    -(10**4000),
    0.1,
    -0.0,
    float("inf"),
    1e308,
    "",
    "a\n\ud800\x00",
    [],
    [1, [2.0, "3"]],
    (),
    (1, [2], (3,)),
    {1, 2},
    frozenset({"a"}),
    {},
    {1: "a", (2, 3): [4], "5": None},
    1 + 2j,
    b"\x00\xff",
]


@pytest.mark.parametrize("value", VALUES)
def test_there_and_back(value: Any) -> None:
    back = decode(json.loads(json.dumps(Encoder().encode(value))))
    assert back == value and type(back) is type(value) and repr(back) == repr(value)


def test_not_a_number() -> None:
    assert math.isnan(decode(json.loads(json.dumps(Encoder().encode(float("nan"))))))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        (bytearray(b"a"), b"a"),
    ],
)
def test_other_classes(value: Any, plain: Any) -> None:
    assert decode(Encoder().encode(value)) == plain


@pytest.mark.parametrize("value", [object(), range(3), (x for x in "a"), int])
def test_objects_equal_nothing(value: Any) -> None:
    found = decode(Encoder().encode(value))
    assert isinstance(found, Other) and found != decode(Encoder().encode(value))


def test_bounds() -> None:
    deep: list[Any] = []
    for _ in range(DEEPEST + 1):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    for value in (deep, endless):
        with pytest.raises(TooLargeError):
            Encoder().encode(value)
    with pytest.raises(TooLargeError):
        Encoder(most=3).encode([1, 2, 3])


@pytest.mark.parametrize(
    "encoded",
    [
        {},
        {"t": 1},
        {"x": []},
        {"t": [], "s": []},
        {"d": [1]},
        {"s": [[]]},
        {"i": "g"},
        {"i": 3},
        {"f": "x"},
        {"b": "0"},
        {"c": []},
    ],
)
def test_what_no_encoder_writes(encoded: Any) -> None:
    with pytest.raises((ValueError, IndexError)):
        decode(encoded)


def test_too_deep_to_decode() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValueError, match="too deep"):
        decode(deep)


def test_large_values_become_digests() -> None:
    assert reported([1, (2,)]) == [1, {"t": [2]}]
    first, second, other = (reported("a" * (1 << 20) + end) for end in ("b", "b", "c"))
    assert set(first) == {"h"} and isinstance(decode(first), Large)
    assert decode(first) == decode(second) != decode(other)


def test_sets_have_one_order() -> None:
    words = {str(number) for number in range(50)}
    assert Encoder().encode(words) == {"s": sorted(words, key=repr)}
