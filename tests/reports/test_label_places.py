"""Places of labels: beside their points, inside of the picture, and never over each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from psynth_jax.reports.label_places import Box, place_labels

INSIDE = Box(0, 0, 800, 500)


def test_a_label_alone_is_to_the_right_of_its_point() -> None:
    (place,) = place_labels([(100, 100)], [(60, 16)], INSIDE)
    assert (place.box, place.far) == (Box(113, 92, 173, 108), False)


def test_at_the_edge_it_is_on_the_other_side() -> None:
    (place,) = place_labels([(790, 100)], [(60, 16)], INSIDE)
    assert place.box == Box(717, 92, 777, 108)


def test_a_line_is_kept_free() -> None:
    (place,) = place_labels([(400, 100)], [(60, 16)], INSIDE, [Box(0, 98, 800, 102)])
    assert place.box == Box(370, 113, 430, 129)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_overlaps(seed: int) -> None:
    """Twelve points in a small part of the picture."""
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.uniform((300, 200), (420, 280), (12, 2))]
    sizes = [(float(width), 18.0) for width in rng.uniform(30, 120, 12)]
    places = place_labels(points, sizes, INSIDE)
    for one, other in itertools.combinations(places, 2):
        assert not one.box.meets(other.box)
    for place, (x, y) in itertools.product(places, points):
        assert not place.box.meets(Box(x - 3, y - 3, x + 3, y + 3))
    assert all(place.box.within(INSIDE) for place in places)
    assert any(place.far for place in places)


def test_without_room_it_is_to_the_right() -> None:
    (place,) = place_labels([(5, 5)], [(60, 16)], Box(0, 0, 10, 10))
    assert (place.box, place.far) == (Box(18, -3, 78, 13), False)
