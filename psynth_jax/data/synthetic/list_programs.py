"""Exercises over lists of numbers, alone or with a limit."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from psynth_jax.data.synthetic.exercise import Exercise


def _numbers(rng: Random) -> list[int]:
    """Draw numbers, some of them equal, rarely all of them negative."""
    low, high = rng.choice([(1, 9), (1, 20), (1, 40), (-9, 12), (-20, -1)])
    numbers = [rng.randint(low, high) for _ in range(rng.randint(5, 8))]
    numbers.insert(rng.randrange(len(numbers)), rng.choice(numbers))
    return numbers


def _list(rng: Random) -> tuple[list[int]]:
    return (_numbers(rng),)


def _list_and_limit(rng: Random) -> tuple[list[int], int]:
    numbers = _numbers(rng)
    return numbers, rng.choice(numbers)


def _even_sum(numbers: list[int]) -> int:
    total = 0
    for number in numbers:
        if number % 2 == 0:
            total += number
    return total


def _even_sum_too(numbers: list[int]) -> int:
    return sum(number for number in numbers if number % 2 == 0)


def _odd_sum(numbers: list[int]) -> int:
    return sum(number for number in numbers if number % 2 == 1)


def _last_even(numbers: list[int]) -> int:
    total = 0
    for number in numbers:
        if number % 2 == 0:
            total = number
    return total


def _even_sum_but_last(numbers: list[int]) -> int:
    total = 0
    for number in numbers[:-1]:
        if number % 2 == 0:
            total += number
    return total


def _even_count(numbers: list[int]) -> int:
    total = 0
    for number in numbers:
        if number % 2 == 0:
            total += 1
    return total


def _largest(numbers: list[int]) -> int:
    best = numbers[0]
    for number in numbers[1:]:
        if number > best:
            best = number
    return best


def _largest_too(numbers: list[int]) -> int:
    return sorted(numbers)[-1]


def _largest_from_zero(numbers: list[int]) -> int:
    best = 0
    for number in numbers:
        if number > best:
            best = number
    return best


def _smallest(numbers: list[int]) -> int:
    best = numbers[0]
    for number in numbers[1:]:
        if number < best:
            best = number
    return best


def _largest_but_last(numbers: list[int]) -> int:
    best = numbers[0]
    for index in range(1, len(numbers) - 1):
        if numbers[index] > best:
            best = numbers[index]
    return best


def _second(numbers: list[int]) -> int:
    return sorted(set(numbers))[-2]


def _second_too(numbers: list[int]) -> int:
    best = max(numbers)
    return max(number for number in numbers if number < best)


def _second_with_equals(numbers: list[int]) -> int:
    return sorted(numbers)[-2]


def _second_smallest(numbers: list[int]) -> int:
    return sorted(set(numbers))[1]


def _third(numbers: list[int]) -> int:
    return sorted(set(numbers))[-3]


def _different_enough(rng: Random) -> tuple[list[int]]:
    """Draw a list of three different numbers or more."""
    numbers = _numbers(rng)
    while len(set(numbers)) < 3:
        numbers = _numbers(rng)
    return (numbers,)


def _run(numbers: list[int]) -> int:
    best = count = 1
    for index in range(1, len(numbers)):
        if numbers[index] > numbers[index - 1]:
            count += 1
        else:
            count = 1
        best = max(best, count)
    return best


def _run_with_equals(numbers: list[int]) -> int:
    best = count = 1
    for index in range(1, len(numbers)):
        if numbers[index] >= numbers[index - 1]:
            count += 1
        else:
            count = 1
        best = max(best, count)
    return best


def _run_from_zero(numbers: list[int]) -> int:
    best = count = 0
    for index in range(1, len(numbers)):
        if numbers[index] > numbers[index - 1]:
            count += 1
        else:
            count = 0
        best = max(best, count)
    return best


def _run_at_the_end(numbers: list[int]) -> int:
    count = 1
    for index in range(1, len(numbers)):
        if numbers[index] > numbers[index - 1]:
            count += 1
        else:
            count = 1
    return count


def _spread(numbers: list[int]) -> int:
    return max(numbers) - min(numbers)


def _spread_too(numbers: list[int]) -> int:
    ordered = sorted(numbers)
    return ordered[-1] - ordered[0]


def _spread_of_ends(numbers: list[int]) -> int:
    return numbers[-1] - numbers[0]


def _spread_added(numbers: list[int]) -> int:
    return max(numbers) + min(numbers)


def _above(numbers: list[int], limit: int) -> int:
    count = 0
    for number in numbers:
        if number > limit:
            count += 1
    return count


def _above_too(numbers: list[int], limit: int) -> int:
    return len([number for number in numbers if number > limit])


def _above_or_equal(numbers: list[int], limit: int) -> int:
    count = 0
    for number in numbers:
        if number >= limit:
            count += 1
    return count


def _above_from_one(numbers: list[int], limit: int) -> int:
    count = 1
    for number in numbers:
        if number > limit:
            count += 1
    return count


def _below(numbers: list[int], limit: int) -> int:
    return len([number for number in numbers if number < limit])


def _sum_above(numbers: list[int], limit: int) -> int:
    total = 0
    for number in numbers:
        if number > limit:
            total += number
    return total


def _sum_above_too(numbers: list[int], limit: int) -> int:
    return sum(number for number in numbers if number > limit)


def _sum_at_least(numbers: list[int], limit: int) -> int:
    return sum(number for number in numbers if number >= limit)


def _sum_below(numbers: list[int], limit: int) -> int:
    return sum(number for number in numbers if number < limit)


def _sum_from_limit(numbers: list[int], limit: int) -> int:
    total = limit
    for number in numbers:
        if number > limit:
            total += number
    return total


def _first_place(numbers: list[int], limit: int) -> int:
    for index, number in enumerate(numbers):
        if number == limit:
            return index
    return -1


def _first_place_too(numbers: list[int], limit: int) -> int:
    return numbers.index(limit) if limit in numbers else -1


def _place_from_one(numbers: list[int], limit: int) -> int:
    for index, number in enumerate(numbers, 1):
        if number == limit:
            return index
    return -1


def _last_place(numbers: list[int], limit: int) -> int:
    place = -1
    for index, number in enumerate(numbers):
        if number == limit:
            place = index
    return place


def _equal(numbers: list[int], limit: int) -> int:
    count = 0
    for number in numbers:
        if number == limit:
            count += 1
    return count


def _equal_too(numbers: list[int], limit: int) -> int:
    return numbers.count(limit)


def _unequal(numbers: list[int], limit: int) -> int:
    count = 0
    for number in numbers:
        if number != limit:
            count += 1
    return count


def _equal_once(numbers: list[int], limit: int) -> int:
    count = 0
    for number in numbers:
        if number == limit:
            count = 1
    return count


LIST_EXERCISES: Sequence[Exercise] = (
    Exercise(
        "even_sum",
        "Return the sum of all even numbers.",
        (_even_sum, _even_sum_too),
        {
            _odd_sum: "adds up the odd numbers",
            _last_even: "keeps only the last even number, because it does not add",
            _even_sum_but_last: "never looks at the last number",
            _even_count: "counts the even numbers instead of adding them up",
        },
        _list,
    ),
    Exercise(
        "largest",
        "Return the largest of the numbers.",
        (_largest, _largest_too),
        {
            _largest_from_zero: "begins with 0, which is larger than negative numbers",
            _smallest: "looks for the smallest, because its comparison is turned round",
            _largest_but_last: "stops one too early and never looks at the last number",
        },
        _list,
    ),
    Exercise(
        "second",
        "Return the second largest of the different numbers.",
        (_second, _second_too),
        {
            _second_with_equals: "takes two equal numbers for different ones",
            _second_smallest: "takes the second smallest",
            _third: "is off by one and takes the third largest",
        },
        _different_enough,
    ),
    Exercise(
        "run",
        "Return the length of the longest strictly rising run of neighbouring numbers.",
        (_run,),
        {
            _run_with_equals: "lets equal numbers continue a run",
            _run_from_zero: "begins to count a run at 0 instead of 1",
            _run_at_the_end: "returns the last run, not the longest",
        },
        _list,
    ),
    Exercise(
        "spread",
        "Return the difference between the largest and the smallest of the numbers.",
        (_spread, _spread_too),
        {
            _spread_of_ends: "takes the last and the first number as they stand",
            _spread_added: "adds the two instead of subtracting",
        },
        _list,
    ),
    Exercise(
        "above",
        "Return how many of the numbers are greater than limit.",
        (_above, _above_too),
        {
            _above_or_equal: "also counts numbers that equal the limit",
            _above_from_one: "begins to count at 1 instead of 0",
            _below: "counts the numbers that are less than the limit",
        },
        _list_and_limit,
    ),
    Exercise(
        "sum_above",
        "Return the sum of the numbers that are greater than limit.",
        (_sum_above, _sum_above_too),
        {
            _sum_at_least: "also adds numbers that equal the limit",
            _sum_below: "adds the numbers that are less than the limit",
            _sum_from_limit: "begins with the limit instead of 0",
            _above: "counts the numbers instead of adding them up",
        },
        _list_and_limit,
    ),
    Exercise(
        "place",
        "Return the index, from 0, of the first number that equals limit, or -1.",
        (_first_place, _first_place_too),
        {
            _place_from_one: "counts the index from 1",
            _last_place: "returns the last such index, because it goes on searching",
        },
        _list_and_limit,
    ),
    Exercise(
        "equal",
        "Return how many of the numbers equal limit.",
        (_equal, _equal_too),
        {
            _unequal: "counts the numbers that differ from the limit",
            _equal_once: "never counts beyond 1, because it does not add",
            _above_or_equal: "also counts numbers that are greater than the limit",
        },
        _list_and_limit,
    ),
)
