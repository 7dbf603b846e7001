"""The inputs in test programs of the hub's data sets."""

from __future__ import annotations

import math

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.stated_tests import stated_inputs

TEST = """
import numpy as np
from math import inf

def check(candidate):
    inputs = [[[1, (2, 3)], {4}], ['a', -inf], [float('nan'), np.inf]]
    results = [1, 2, 3]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""


def test_literals() -> None:
    first, second, third = stated_inputs("x:1", TEST)
    assert (first, second) == ([[1, (2, 3)], {4}], ["a", -math.inf])
    assert math.isnan(third[0]) and third[1] == math.inf
    assert stated_inputs("x:1", "inputs = [(1, 2)]") == [[1, 2]]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("x = [[1]]", "'test' assigns no list to 'inputs'"),
        ("inputs = [[f(1)]]", "'inputs' in 'test' is no list of literals: "),
        ("inputs = [1]", "'inputs' in 'test' must be a list of lists of arguments"),
        ("inputs = ", "'test' is no Python program: "),
    ],
)
def test_errors(test: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        stated_inputs("x:1", test)
    assert str(caught.value).startswith(f"x:1: {message}")
