"""What counts as the right output, and what makes one vote."""

from __future__ import annotations

import time
from typing import Any

import pytest

from psynth_jax.evaluation.benchmarks.oracles import is_right, output_key
from psynth_jax.evaluation.benchmarks.sandboxed.values import Other

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("got", "right", "atol", "is_so"),
    [
        (1, 1, 0, True),
        (1.0, 1, 0, True),
        (True, 1, 0, True),
        (1.0000001, 1, 0, False),
        (1.00001, 1, 1e-4, True),
        (2, 1, 0, False),
        (1.0000001, 1.0, 0, True),
        (1.00001, 1.0, 0, False),
        (1.00001, 1.0, 1e-4, True),
        (1e10 + 1, 1e10, 0, True),
        (1e10 + 1e5, 1e10, 0, False),
        (10**400, 1.0, 0, False),
        (1.0, 10**400, 1e-4, False),
        (NAN, NAN, 0, True),
        (1.0, NAN, 0, False),
        (INF, INF, 0, True),
        (-INF, INF, 0, False),
        (1 + 1e-9j, 1 + 0j, 0, True),
        ("1", 1, 0, False),
        (None, 0, 0, False),
        ([1], (1,), 0, False),
        ([1, 2.0000001], [1, 2.0], 0, True),
        ([1, 2], [2, 1], 0, False),
        ([1], [1, 2], 0, False),
        ({"a": [0.30000000001]}, {"a": [0.3]}, 0, True),
        ({"a": 1}, {"b": 1}, 0, False),
        ([1], {"b": 1}, 0, False),
        ({1, 2}, {2, 1}, 0, True),
        ({0.1 + 0.2, 5}, {0.3, 5.0}, 0, True),
        ({0.301, 5}, {0.3, 5}, 0, False),
        ({(1, 0.1 + 0.2)}, frozenset({(1, 0.3)}), 0, True),
        ({1, 2}, {1, 3}, 0, False),
        ({1}, {1, 2}, 0, False),
        ({1, "a"}, {2, "a"}, 0, False),
        ({NAN}, {NAN}, 0, True),
        ({0.1 + 0.2: 1}, {0.3: 1}, 0, True),
        ({0.1 + 0.2: 1}, {0.3: 2}, 0, False),
        ({0.1: 1, 0.2: 2}, {0.1: 1}, 0, False),
        (Other("Match"), Other("Match"), 0, False),
        ([Other("x")], [None], 0, False),
    ],
)
def test_equality(got: Any, right: Any, atol: float, is_so: bool) -> None:
    assert is_right("f", got, right, [], atol) is is_so


def test_any_order() -> None:
    assert is_right("similar_elements", [2, 1, 1], (1, 2), [], 0)
    assert not is_right("similar_elements", [2], (1, 2), [], 0)
    assert not is_right("similar_elements", [[2], [1]], (1, 2), [], 0)
    assert not is_right("similar_elements", None, (1, 2), [], 0)
    assert not is_right("shared_elements", [2, 1], [1, 2], [], 0)


def test_floats_in_any_order() -> None:
    assert is_right("Diff", [5, 0.1 + 0.2], [0.3, 5], [], 0)
    assert not is_right("Diff", [5, 0.31], [0.3, 5], [], 0)


def test_keys_that_share_a_hash_take_no_time() -> None:
    alike = [number * (2**61 - 1) for number in range(60_000)]
    started = time.process_time()
    assert not is_right("Diff", alike, [1], [], 0)
    assert time.process_time() - started < 5


def test_truth() -> None:
    for right in (Other("Match"), True):
        assert [is_right("check_str", got, right, [], 0) for got in (True, Other("Match"), 1)] == [True] * 3
        assert not is_right("check_str", None, right, [], 0) and not is_right("check_str", False, right, [], 0)
    assert is_right("check_str", False, None, [], 0) and not is_right("check_str", True, None, [], 0)


def test_roots() -> None:
    square = [[-1, 0, 1]]  # two roots, -1 and 1
    assert [is_right("find_zero", got, 1.0, square, 1e-4) for got in (1.0, -1.0, 1)] == [True] * 3
    assert not is_right("find_zero", 0.9, 1.0, square, 1e-4)
    assert not is_right("find_zero", "1", 1.0, square, 1e-4)
    assert not is_right("find_zero", 1e200, 1.0, square, 1e-4)
    # The best float is further off than the tolerance: as near as the solution's is near enough.
    steep = [[-1e12, 3e11]]
    assert is_right("find_zero", 10 / 3, 10 / 3, steep, 1e-9) and not is_right("find_zero", 3.33, 10 / 3, steep, 1e-9)


def test_votes() -> None:
    key = output_key("f", [1, [0.1 + 0.2], "a", {1: 2, 3: 4}])
    assert key == output_key("f", [1.0, [0.3], "a", {3: 4, 1: 2}])
    assert key != output_key("f", [1, (0.3,), "a", {1: 2, 3: 4}])
    assert key != output_key("f", [1, [0.3001], "a", {1: 2, 3: 4}])
    for values in ([1, 1.0, True, 1 + 0j], [0, -0.0, False], [10**15, 1e15], [2**80, 2.0**80]):
        assert len({output_key("f", [[value]]) for value in values}) == 1
    assert output_key("f", [0.99999999999999]) == output_key("f", [1])
    assert output_key("f", [1e-7]) != output_key("f", [1.001e-7])
    assert output_key("f", [1234567.5]) != output_key("f", [1234568])
    assert output_key("f", [1 + 2j]) == output_key("f", [1 + (0.1 + 1.9) * 1j]) != output_key("f", [2 + 1j])
    assert len({output_key("f", [value]) for value in (NAN, INF, -INF, "nan")}) == 4
    assert output_key("f", [10**30]) != output_key("f", [10**30 + 1])
    assert output_key("f", [Other("ValueError")]) == output_key("f", [Other("ValueError")])
    assert output_key("Diff", [[2, 1, 1]]) == output_key("Diff", [(1, 2)])
    assert output_key("check_str", [Other("Match")]) == output_key("check_str", [True])
