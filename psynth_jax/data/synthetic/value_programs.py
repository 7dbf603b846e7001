"""Exercises over one number, or one word."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from psynth_jax.data.synthetic.exercise import Exercise


def _one_number(rng: Random) -> tuple[int]:
    return (rng.randint(12, 99),)


def _one_word(rng: Random) -> tuple[str]:
    """Draw a word whose syllables have different numbers of consonants."""
    word = ""
    for _ in range(rng.randint(3, 5)):
        before, after = rng.choice([(1, 0), (1, 1), (0, 1), (2, 0)])
        word += "".join(rng.choices("bdfgklmnprst", k=before))
        word += rng.choice("aeiouu")
        word += "".join(rng.choices("lnrst", k=after))
    return (word,)


def _sum_to(limit: int) -> int:
    total = 0
    for number in range(1, limit + 1):
        total += number
    return total


def _sum_to_too(limit: int) -> int:
    return limit * (limit + 1) // 2


def _sum_short(limit: int) -> int:
    total = 0
    for number in range(1, limit):
        total += number
    return total


def _sum_from_one(limit: int) -> int:
    total = 1
    for number in range(1, limit + 1):
        total += number
    return total


def _sum_by_two(limit: int) -> int:
    total = 0
    for number in range(1, limit + 1, 2):
        total += number
    return total


def _digit_sum(limit: int) -> int:
    total = 0
    while limit > 0:
        total += limit % 10
        limit //= 10
    return total


def _digit_sum_too(limit: int) -> int:
    return sum(int(letter) for letter in str(limit))


def _digit_sum_short(limit: int) -> int:
    total = 0
    while limit >= 10:
        total += limit % 10
        limit //= 10
    return total


def _digit_count(limit: int) -> int:
    return len(str(limit))


def _digit_product(limit: int) -> int:
    total = 1
    while limit > 0:
        total *= limit % 10
        limit //= 10
    return total


def _top_digit(limit: int) -> int:
    best = 0
    while limit > 0:
        best = max(best, limit % 10)
        limit //= 10
    return best


def _top_digit_too(limit: int) -> int:
    return int(max(str(limit)))


def _last_digit(limit: int) -> int:
    return limit % 10


def _first_digit(limit: int) -> int:
    return int(str(limit)[0])


def _low_digit(limit: int) -> int:
    return int(min(str(limit)))


def _divisors(limit: int) -> int:
    count = 0
    for number in range(1, limit + 1):
        if limit % number == 0:
            count += 1
    return count


def _divisors_too(limit: int) -> int:
    return len([number for number in range(1, limit + 1) if limit % number == 0])


def _divisors_short(limit: int) -> int:
    count = 0
    for number in range(1, limit):
        if limit % number == 0:
            count += 1
    return count


def _divisors_from_two(limit: int) -> int:
    count = 0
    for number in range(2, limit + 1):
        if limit % number == 0:
            count += 1
    return count


def _divisor_sum(limit: int) -> int:
    return sum(number for number in range(1, limit + 1) if limit % number == 0)


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


def _consonants_too(text: str) -> int:
    return len([letter for letter in text if letter not in "aeiou"])


def _vowels_once(text: str) -> int:
    return len({letter for letter in text if letter in "aeiou"})


def _consonants_and_u(text: str) -> int:
    return len([letter for letter in text if letter not in "aeio"])


def _consonants_but_last(text: str) -> int:
    count = 0
    for letter in text[:-1]:
        if letter not in "aeiou":
            count += 1
    return count


def _different(text: str) -> int:
    return len(set(text))


def _different_too(text: str) -> int:
    seen = ""
    for letter in text:
        if letter not in seen:
            seen += letter
    return len(seen)


def _length(text: str) -> int:
    seen = ""
    for letter in text:
        seen += letter
    return len(seen)


def _neighbours_differ(text: str) -> int:
    count = 1
    for index in range(1, len(text)):
        if text[index] != text[index - 1]:
            count += 1
    return count


def _different_but_first(text: str) -> int:
    return len(set(text[1:]))


VALUE_EXERCISES: Sequence[Exercise] = (
    Exercise(
        "sum_to",
        "Return the sum of the integers from 1 to limit, limit included.",
        (_sum_to, _sum_to_too),
        {
            _sum_short: "stops one too early and leaves the limit out",
            _sum_from_one: "begins with 1 instead of 0",
            _sum_by_two: "takes only every second integer",
        },
        _one_number,
    ),
    Exercise(
        "digit_sum",
        "Return the sum of the digits of limit.",
        (_digit_sum, _digit_sum_too),
        {
            _digit_sum_short: "stops before the first digit",
            _digit_count: "returns how many digits there are",
            _digit_product: "multiplies the digits",
        },
        _one_number,
    ),
    Exercise(
        "top_digit",
        "Return the largest digit of limit.",
        (_top_digit, _top_digit_too),
        {
            _last_digit: "returns the last digit, which is not the largest",
            _first_digit: "returns the first digit, which is not the largest",
            _low_digit: "returns the smallest digit",
        },
        _one_number,
    ),
    Exercise(
        "divisors",
        "Return how many integers from 1 to limit divide limit, both ends included.",
        (_divisors, _divisors_too),
        {
            _divisors_short: "stops one too early and leaves the limit itself out",
            _divisors_from_two: "begins at 2 and leaves 1 out",
            _divisor_sum: "adds up the divisors instead of counting them",
        },
        _one_number,
    ),
    Exercise(
        "vowels",
        "Return how many letters of the text are vowels (a, e, i, o, u).",
        (_vowels, _vowels_too),
        {
            _vowels_without_u: "does not count the letter u",
            _consonants: "counts the letters that are no vowels",
            _vowels_once: "counts each vowel once only",
        },
        _one_word,
    ),
    Exercise(
        "consonants",
        "Return how many letters of the text are not vowels (a, e, i, o, u).",
        (_consonants, _consonants_too),
        {
            _consonants_and_u: "also counts the letter u",
            _vowels: "counts the vowels",
            _consonants_but_last: "never looks at the last letter",
        },
        _one_word,
    ),
    Exercise(
        "different",
        "Return how many different letters the text has.",
        (_different, _different_too),
        {
            _length: "counts letters that came before again",
            _neighbours_differ: "compares a letter with the one before it only",
            _different_but_first: "never looks at the first letter",
        },
        _one_word,
    ),
)
