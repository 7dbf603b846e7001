"""Values to JSON and back: types stay what they are, and nothing is too deep or too large."""

from __future__ import annotations

import collections
import json
import math
from typing import Any

import numpy as np
import pytest

from psynth_jax.evaluation.benchmarks.sandboxed import values
from psynth_jax.evaluation.benchmarks.sandboxed.values import (
    DEEPEST,
    Decoder,
    Encoder,
    Large,
    Other,
    TooLargeError,
    canonical,
    decode,
    reported,
)

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


def test_large_values_that_are_equal_have_one_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LONGEST", 1000)
    count = 150
    pairs = [(number, -number) for number in range(count)]
    assert reported(dict(pairs)) == reported(dict(reversed(pairs)))
    whole, halves = list(range(count)), [number + 0.5 for number in range(count)]
    floats = [float(number) for number in range(count)]
    assert reported(whole + halves) == reported(floats + halves) != reported(halves + whole)
    assert set(reported(whole + halves)) == {"h"}


def test_equal_values_are_long_or_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LONGEST", 1000)
    count = 200  # as floats more than 1000 characters, as integers less
    whole = list(range(count))
    assert decode(reported([float(number) for number in whole])) == decode(reported(whole)) == whole


@pytest.mark.parametrize(
    ("value", "equal"),
    [
        (1.0, 1),
        (True, 1),
        (-0.0, 0),
        (1e300, int(1e300)),
        (2 + 0j, 2),
        ({1.0: "a", 0: (True,)}, {0: (1,), 1: "a"}),
        ({1.0, "b"}, frozenset({1, "b"})),
        (complex(-0.0, 1), 1j),
    ],
)
def test_canonical_forms(value: Any, equal: Any) -> None:
    assert canonical(Encoder().encode(value)) == canonical(Encoder().encode(equal))
    assert repr(canonical(Encoder().encode(value))) == repr(canonical(Encoder().encode(equal)))


def test_what_differs_has_another_canonical_form() -> None:
    forms = set()
    for value in (1, 1.5, "1", (1,), [1], {1}, {1: 1}, 1j, b"1", None, float("inf"), -1):
        forms.add(repr(canonical(Encoder().encode(value))))
    assert len(forms) == 12


def test_too_many_parts_to_decode() -> None:
    assert Decoder(most=4).decode([1, 2, 3]) == [1, 2, 3]
    with pytest.raises(ValueError, match="too many parts"):
        Decoder(most=3).decode([1, 2, 3])


def test_keys_that_share_a_hash_are_refused() -> None:
    prime = 2**61 - 1  # of which all multiples have the hash 0
    keys = [{"i": format(number * prime, "x")} for number in range(1, 102)]
    assert len(decode({"s": keys[:100]})) == 100
    for encoded in ({"s": keys}, {"z": keys}, {"d": [[key, 1] for key in keys]}):
        with pytest.raises(ValueError, match="the same hash"):
            decode(encoded)
    assert len(decode({"s": list(range(1000))})) == 1000


def test_sets_have_one_order() -> None:
    words = {str(number) for number in range(50)}
    assert Encoder().encode(words) == {"s": sorted(words, key=repr)}
