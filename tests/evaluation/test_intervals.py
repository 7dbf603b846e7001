"""Bootstrap intervals: how often they hold the truth, and that pairing is used."""

from __future__ import annotations

import numpy as np
import pytest

from psynth_jax.evaluation import intervals
from psynth_jax.evaluation.intervals import difference_interval, mean_interval, ratio_interval


def test_constant_scores_have_no_width() -> None:
    found = mean_interval([0.25] * 7, seed=0)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_agrees_with_the_normal_approximation() -> None:
    scores = np.random.default_rng(1).normal(5, 2, 400)
    found = mean_interval(scores, seed=0)
    error = 1.96 * scores.std() / np.sqrt(len(scores))
    assert found.value == pytest.approx(scores.mean())
    np.testing.assert_allclose([found.low, found.high], [scores.mean() - error, scores.mean() + error], atol=0.02)


@pytest.mark.parametrize(("level", "least", "most"), [(0.95, 0.91, 0.98), (0.8, 0.73, 0.86)])
def test_coverage(level: float, least: float, most: float) -> None:
    """Of 300 samples of 60 right or wrong answers, about as many intervals as promised hold the true rate."""
    rng = np.random.default_rng(0)
    held = 0
    for sample in range(300):
        found = mean_interval(rng.random(60) < 0.4, seed=sample, resamples=500, level=level)
        held += found.low <= 0.4 <= found.high
    assert least <= held / 300 <= most


def test_seed_decides() -> None:
    scores = np.random.default_rng(2).random(50)
    assert mean_interval(scores, seed=3) == mean_interval(scores, seed=3) != mean_interval(scores, seed=4)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(2).random(64)
    whole = mean_interval(scores, seed=3, resamples=1000)
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 64 * 7)
    assert mean_interval(scores, seed=3, resamples=1000) == whole


class TestPaired:
    rng = np.random.default_rng(5)
    hard = rng.random(200)  # what both methods share
    first, second = hard + 0.1 + 0.01 * rng.random(200), hard + 0.01 * rng.random(200)

    def test_difference(self) -> None:
        found = difference_interval(self.first, self.second, seed=0)
        assert found.value == pytest.approx(0.1, abs=0.002)
        assert 0 < found.high - found.low < 0.003  # the mean of either alone is known to 0.08 only
        alone = mean_interval(self.first, seed=0)
        assert alone.high - alone.low > 0.05

    def test_ratio(self) -> None:
        found = ratio_interval(self.first, self.second, seed=0)
        assert found is not None
        assert found.low < self.first.mean() / self.second.mean() < found.high
        assert found.value == self.first.mean() / self.second.mean()

    def test_ratio_of_equals(self) -> None:
        found = ratio_interval(self.first, self.first, seed=0)
        assert found is not None and (found.low, found.value, found.high) == (1, 1, 1)

    @pytest.mark.parametrize("second", [[0.0] * 20, [1.0] + [0.0] * 19])
    def test_no_ratio_to_nothing(self, second: list[float]) -> None:
        """One right answer of 20 is missing from a third of the draws."""
        assert ratio_interval([1.0] * 20, second, seed=0) is None

    def test_coverage_of_the_ratio(self) -> None:
        rng, held = np.random.default_rng(0), 0
        for sample in range(200):
            second = rng.random(100) + 0.5  # mean 1
            first = 0.9 * second + rng.normal(0, 0.1, 100)
            found = ratio_interval(np.maximum(first, 0), second, seed=sample, resamples=500)
            assert found is not None
            held += found.low <= 0.9 <= found.high
        assert 0.9 <= held / 200 <= 0.985


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")]])
def test_what_has_no_mean_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one score"):
        mean_interval(scores, seed=0)


def test_unpaired_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 questions"):
        difference_interval([1, 0], [1, 0, 1], seed=0)


def test_negative_scores_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="not negative"):
        ratio_interval([-1.0, 1.0], [1.0, 1.0], seed=0)
