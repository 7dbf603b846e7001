"""Places for the labels of points in a picture, such that no two labels overlap.

            [label]            each label tries places around its point, the nearest first:
      [label]  o  [label]      right, left, above, below, the corners, then farther out
            [label]            with a line back to the point

All numbers are pixels, with y upwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

# Directions in the order in which they are tried, in degrees: a label reads best beside its point.
_DIRECTIONS = (0, 180, 90, 270, 45, 135, 315, 225)
_RINGS = 16  # so many distances are tried
_MARK = 7.0  # pixels from the middle of a point to its edge
_NEAR, _FURTHER = 13.0, 13.0  # pixels from a point to its label, and more of them from ring to ring


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether two rectangles have a point in common."""
        beside = self.right < other.left or other.right < self.left
        above = self.top < other.bottom or other.top < self.bottom
        return not (beside or above)

    def within(self, other: Box) -> bool:
        """Whether no part of this rectangle is outside of the other."""
        level = other.left <= self.left and self.right <= other.right
        return level and other.bottom <= self.bottom and self.top <= other.top


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a label goes.  far: whether a line should join it to its point."""

    box: Box
    far: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    lines: Sequence[Box] = (),
) -> list[Place]:
    """Return a place for each label.

    Args:
      points: of the labels.
      sizes: width and height of each label.
      inside: no label leaves it.
      lines: what else no label may cover.

    Returns:
      Places that meet neither each other, nor a point, nor a line, as long as there is room; a
      label that finds none goes to the right of its point.
    """
    obstacles = [*lines]
    for x, y in points:
        obstacles.append(Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK))
    found: list[Place] = []
    for point, size in zip(points, sizes, strict=True):
        chosen = Place(_beside(point, size, 0, _NEAR), far=False)
        for place in _candidates(point, size):
            if place.box.within(inside) and not any(place.box.meets(each) for each in obstacles):
                chosen = place
                break
        obstacles.append(chosen.box)
        found.append(chosen)
    return found


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> Iterator[Place]:
    for ring in range(_RINGS):
        for direction in _DIRECTIONS:
            box = _beside(point, size, direction, _NEAR + ring * _FURTHER)
            yield Place(box, far=ring > 0)


def _beside(
    point: tuple[float, float],
    size: tuple[float, float],
    direction: float,
    distance: float,
) -> Box:
    """Return a label's rectangle whose nearest edge or corner is so far from the point."""
    turn = math.radians(direction)
    across, up = round(math.cos(turn), 6), round(math.sin(turn), 6)
    middle_x = point[0] + across * distance + size[0] / 2 * _sign(across)
    middle_y = point[1] + up * distance + size[1] / 2 * _sign(up)
    half_width, half_height = size[0] / 2, size[1] / 2
    return Box(
        left=middle_x - half_width,
        bottom=middle_y - half_height,
        right=middle_x + half_width,
        top=middle_y + half_height,
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
