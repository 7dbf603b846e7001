"""Small Python functions, right ones and wrong ones: their own source is what workers wrote.

    source(_above, "measure")    def measure(numbers: list[int], limit: int) -> int: ...
    _above([3, 9, 7], 4)         2

Every wrong function has one visible bug: off by one, a wrong operator, a wrong start, a missing
case.  What a version returns is what the function returns: no text is ever run.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeAlias

Function: TypeAlias = Callable[..., Any]

# Names of variables that may stand for each other in a text.
_SYNONYMS = (
    ("numbers", "values", "items"),
    ("number", "value", "item"),
    ("count", "found", "hits"),
    ("total", "result", "amount"),
    ("best", "longest", "top"),
    ("limit", "bound", "threshold"),
    ("text", "word", "line"),
    ("letter", "char", "sign"),
)


@dataclasses.dataclass(frozen=True)
class Exercise:
    """What a function is to do; how to do it right, and wrong with what is wrong with it.

    draw: arguments to call it with.
    """

    name: str
    says: str
    right: Sequence[Function]
    wrong: Mapping[Function, str]
    draw: Callable[[Random], tuple[Any, ...]]


def source(function: Function, name: str, says: str, rng: Random) -> str:
    """Return the text of a function under another name, with its docstring and other variables."""
    text = _source(function).replace(f"def {function.__name__}(", f"def {name}(", 1)
    head, body = text.split("\n", 1)
    renamed = f'{head}\n    """{says}"""\n{body}'
    for names in _SYNONYMS:
        chosen = rng.choice(names)
        renamed = re.sub(rf"\b{names[0]}\b", chosen, renamed)
    return renamed.rstrip()


@functools.cache
def _source(function: Function) -> str:
    return inspect.getsource(function)


def _numbers(rng: Random, low: int = 1, high: int = 20) -> list[int]:
    return [rng.randint(low, high) for _ in range(rng.randint(4, 8))]


def _numbers_and_one_of_them(rng: Random) -> tuple[list[int], int]:
    numbers = _numbers(rng, 1, 12)
    return numbers, rng.choice(numbers)


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


def _even_sum_last(numbers: list[int]) -> int:
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


def _largest_size(numbers: list[int]) -> int:
    best = numbers[0]
    for number in numbers[1:]:
        if abs(number) > abs(best):
            best = number
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


def _with_a_tie(rng: Random) -> tuple[list[int]]:
    numbers = rng.sample(range(1, 20), rng.randint(4, 6))
    numbers.append(max(numbers))
    rng.shuffle(numbers)
    return (numbers,)


def _sum_to(limit: int) -> int:
    total = 0
    for number in range(1, limit + 1):
        total += number
    return total


def _sum_to_too(limit: int) -> int:
    return limit * (limit + 1) // 2


def _sum_below(limit: int) -> int:
    total = 0
    for number in range(1, limit):
        total += number
    return total


def _product_to(limit: int) -> int:
    total = 1
    for number in range(1, limit + 1):
        total *= number
    return total


def _sum_to_from_one(limit: int) -> int:
    total = 1
    for number in range(1, limit + 1):
        total += number
    return total


def _digits(number: int) -> int:
    total = 0
    while number > 0:
        total += number % 10
        number //= 10
    return total


def _digits_too(number: int) -> int:
    return sum(int(letter) for letter in str(number))


def _digits_but_first(number: int) -> int:
    total = 0
    while number >= 10:
        total += number % 10
        number //= 10
    return total


def _digit_count(number: int) -> int:
    return len(str(number))


def _digits_product(number: int) -> int:
    total = 1
    while number > 0:
        total *= number % 10
        number //= 10
    return total


def _vowels(text: str) -> int:
    count = 0
    for letter in text:
        if letter in "aeiou":
            count += 1
    return count


def _vowels_too(text: str) -> int:
    return sum(letter in "aeiou" for letter in text)


def _vowels_without_u(text: str) -> int:
    count = 0
    for letter in text:
        if letter in "aeio":
            count += 1
    return count


def _consonants(text: str) -> int:
    count = 0
    for letter in text:
        if letter not in "aeiou":
            count += 1
    return count


def _vowels_once(text: str) -> int:
    return len({letter for letter in text if letter in "aeiou"})


def _word(rng: Random) -> tuple[str]:
    parts = [rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(3, 5))]
    return ("".join([*parts, "u", rng.choice("lnrst")]),)


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


def _climbing(rng: Random) -> tuple[list[int]]:
    numbers = _numbers(rng, 1, 9)
    return ([*numbers, numbers[-1], max(numbers) + 1, max(numbers) + 3, 1],)


def _first_place(numbers: list[int], limit: int) -> int:
    for index, number in enumerate(numbers):
        if number == limit:
            return index
    return -1


def _place_from_one(numbers: list[int], limit: int) -> int:
    for index, number in enumerate(numbers, 1):
        if number == limit:
            return index
    return -1


def _last_place(numbers: list[int], limit: int) -> int:
    found = -1
    for index, number in enumerate(numbers):
        if number == limit:
            found = index
    return found


def _spread(numbers: list[int]) -> int:
    return max(numbers) - min(numbers)


def _spread_too(numbers: list[int]) -> int:
    ordered = sorted(numbers)
    return ordered[-1] - ordered[0]


def _spread_of_ends(numbers: list[int]) -> int:
    return numbers[-1] - numbers[0]


def _spread_sum(numbers: list[int]) -> int:
    return max(numbers) + min(numbers)


def _spread_from_zero(numbers: list[int]) -> int:
    return max(numbers) - min(0, *numbers)


def _twice_in_list(rng: Random) -> tuple[list[int], int]:
    numbers, one = _numbers_and_one_of_them(rng)
    return [rng.randint(13, 20), *numbers, one], one


EXERCISES: Sequence[Exercise] = (
    Exercise(
        "above",
        "Return how many of the numbers are greater than limit.",
        (_above, _above_too),
        {
            _above_or_equal: "also counts numbers that equal the limit",
            _above_from_one: "begins to count at 1 instead of 0",
            _below: "counts the numbers that are less than the limit",
        },
        _numbers_and_one_of_them,
    ),
    Exercise(
        "even_sum",
        "Return the sum of all even numbers.",
        (_even_sum, _even_sum_too),
        {
            _odd_sum: "adds up the odd numbers",
            _even_sum_last: "keeps only the last even number, because it does not add",
            _even_sum_but_last: "never looks at the last number",
            _even_count: "counts the even numbers instead of adding them up",
        },
        lambda rng: (_numbers(rng),),
    ),
    Exercise(
        "largest",
        "Return the largest of the numbers.",
        (_largest, _largest_too),
        {
            _largest_from_zero: "begins with 0, which is larger than negative numbers",
            _smallest: "looks for the smallest, because its comparison is turned round",
            _largest_size: "compares the numbers without their signs",
        },
        lambda rng: (_numbers(rng, -30, -1),),
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
        _with_a_tie,
    ),
    Exercise(
        "sum_to",
        "Return the sum of the integers from 1 to limit, limit included.",
        (_sum_to, _sum_to_too),
        {
            _sum_below: "stops one too early and leaves the limit out",
            _product_to: "multiplies instead of adding",
            _sum_to_from_one: "begins with 1 instead of 0",
        },
        lambda rng: (rng.randint(4, 12),),
    ),
    Exercise(
        "digits",
        "Return the sum of the digits of the number.",
        (_digits, _digits_too),
        {
            _digits_but_first: "stops before the first digit",
            _digit_count: "returns how many digits there are",
            _digits_product: "multiplies the digits",
        },
        lambda rng: (rng.randint(1001, 99999),),
    ),
    Exercise(
        "vowels",
        "Return how many letters of the text are vowels (a, e, i, o, u).",
        (_vowels, _vowels_too),
        {
            _vowels_without_u: "leaves out the case of the letter u",
            _consonants: "counts the letters that are no vowels",
            _vowels_once: "counts each vowel once only",
        },
        _word,
    ),
    Exercise(
        "run",
        "Return the length of the longest run of numbers that are each greater than the last.",
        (_run,),
        {
            _run_with_equals: "lets equal numbers continue a run",
            _run_from_zero: "begins to count a run at 0 instead of 1",
            _run_at_the_end: "returns the last run, not the longest",
        },
        _climbing,
    ),
    Exercise(
        "place",
        "Return the index, from 0, of the first number that equals limit, or -1.",
        (_first_place,),
        {
            _place_from_one: "counts the index from 1",
            _last_place: "returns the last such index, because it goes on searching",
        },
        _twice_in_list,
    ),
    Exercise(
        "spread",
        "Return the difference between the largest and the smallest of the numbers.",
        (_spread, _spread_too),
        {
            _spread_of_ends: "takes the last and the first number as they stand",
            _spread_sum: "adds the two instead of subtracting",
            _spread_from_zero: "lets 0 be the smallest, which it is not",
        },
        lambda rng: (_numbers(rng, 3, 40),),
    ),
)
