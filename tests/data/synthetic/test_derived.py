"""Every answer is worked out again, from what the branches say or from what meta keeps of them."""

from __future__ import annotations

import functools
import itertools
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psynth_jax.data.final_answer import final_answer
from psynth_jax.data.record import Record
from psynth_jax.data.synthetic import Kind, synthetic_records
from psynth_jax.data.synthetic.plots import plots

COUNT = 120
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
CONCLUSION = re.compile(r"(?:answer is|nswer:|That gives|result is|Hence|sure that it is) (\d+)\.")


def bare(name: str) -> str:
    return name.removeprefix("the painting ").removeprefix("the ")


@functools.cache
def records(kind: Kind) -> list[Record]:
    return list(synthetic_records([kind], COUNT, seed=21))


def calculate(left: int, sign: str, right: int) -> int:
    match sign:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    assert left % right == 0
    return left // right


def run_program(meta: Any) -> int:
    values = dict(meta["values"])
    for result, left, sign, right in meta["program"]:
        values[result] = calculate(values[left], sign, values[right])
    return int(values[result])


def equations(text: str) -> list[tuple[int, str, int, int]]:
    return [(int(a), sign, int(b), int(c)) for a, sign, b, c in EQUATION.findall(text)]


def holds(equation: tuple[int, str, int, int]) -> bool:
    left, sign, right, result = equation
    if sign == "/":
        return left == right * result
    return calculate(left, sign, right) == result


def given_numbers(record: Record) -> set[int]:
    """The numbers of a word problem that somebody has to say."""
    units = plots()[record.meta["plot"]].units
    return {value for name, value in record.meta["values"].items() if name not in units}


class TestSteps:
    def test_answer(self) -> None:
        for record in records("steps"):
            assert final_answer(record.target) == str(run_program(record.meta)) == record.answers[0]

    def test_working(self) -> None:
        for record in records("steps"):
            shown = equations(record.target)
            assert 2 <= len(shown) == len(record.meta["program"]) <= 4
            assert all(map(holds, shown)) and str(shown[-1][-1]) == record.answers[0]

    def test_numbers_are_told_in_two_to_four_branches_and_not_asked(self) -> None:
        for record in records("steps"):
            numbers = given_numbers(record)
            subjects = set(re.findall(r"[A-Z][a-z]+", record.query.split(" ", 1)[1]))
            told_in = set()
            for number, sentences in enumerate(record.meta["told"]):
                for sentence in sentences:
                    own = subjects & set(re.findall(r"[A-Z][a-z]+", sentence))
                    said = {int(each) for each in re.findall(r"\d+", sentence)}
                    if own and said & numbers:
                        told_in.add(number)
                        numbers -= said
            assert not numbers, record.id
            assert 2 <= len(told_in) <= 4
            assert not re.search(r"\d", record.query)


class TestJudge:
    def test_answer(self) -> None:
        for record in records("judge"):
            assert final_answer(record.target) == str(run_program(record.meta)) == record.answers[0]

    def test_the_query_is_the_whole_problem(self) -> None:
        for record in records("judge"):
            assert given_numbers(record) <= {int(each) for each in re.findall(r"\d+", record.query)}

    def test_right_workers_are_right_and_the_flaw_of_others_can_be_seen(self) -> None:
        wrong_majorities = 0
        for record in records("judge"):
            right_steps = set(filter(holds, equations(record.target)))
            right = 0
            for branch in record.branches:
                (conclusion,) = CONCLUSION.findall(branch.text)
                shown = equations(branch.text)
                # Whatever a worker concludes is what the last step says.
                assert int(conclusion) == shown[-1][-1]
                is_right = conclusion == record.answers[0]
                right += is_right
                # A wrong worker's steps are not the right ones, a right worker's are.
                assert is_right == (set(shown) == right_steps)
            assert 1 <= right < len(record.branches)
            assert len(record.branches) - right == len(record.meta["mistakes"])
            wrong_majorities += right * 2 < len(record.branches)
        assert 0.2 < wrong_majorities / COUNT < 0.6

    def test_mistakes(self) -> None:
        kinds: dict[str, int] = {}
        for record in records("judge"):
            texts = "\n".join(branch.text for branch in record.branches)
            conclusions = set(map(int, CONCLUSION.findall(texts)))
            for mistake in record.meta["mistakes"]:
                assert mistake["flaw"] in record.target
                assert mistake["answer"] != int(record.answers[0])
                assert mistake["answer"] in conclusions
                kinds[mistake["kind"]] = kinds.get(mistake["kind"], 0) + 1
                if mistake["kind"] == "slip":
                    assert not all(map(holds, equations(texts)))
        assert set(kinds) == {"slip", "fact", "missed", "unit"} and min(kinds.values()) >= 5


class TestMerge:
    def test_answer(self) -> None:
        for record in records("merge"):
            meta = record.meta
            found = set(itertools.chain(*meta["lists"])) - {*meta["withdrawn"]}
            short = {name: bare(name) for name in found}
            if meta["order"] == "number":
                ordered = sorted(found, key=meta["numbers"].get)
            else:
                ordered = sorted(found, key=lambda name: short[name])
            assert record.target == ", ".join(short[name] for name in ordered) == record.answers[0]
            assert 3 <= len(ordered) <= 6

    def test_what_is_withdrawn_is_said_where_it_is_not_listed(self) -> None:
        withdrawn = corrected = 0
        for record in records("merge"):
            places = list(zip(record.meta["lists"], record.meta["told"], strict=True))
            for name in record.meta["withdrawn"]:
                assert any(name in items for items, _ in places)
                elsewhere = [" ".join(told).lower() for items, told in places if name not in items]
                assert any(name.lower() in told for told in elsewhere)
                withdrawn += 1
            for name, wrong in record.meta["corrected"].items():
                right = record.meta["numbers"][name]
                elsewhere = [" ".join(told) for items, told in places if name not in items]
                assert any(str(right) in told for told in elsewhere) and wrong != right
                corrected += 1
        assert withdrawn > COUNT / 2 and corrected > COUNT / 4

    def test_most_lists_are_partial(self) -> None:
        partial = 0
        for record in records("merge"):
            longest = max(map(len, record.meta["lists"]))
            partial += longest < len(record.meta["numbers"])
        assert partial > COUNT / 2


def is_true(meta: Any) -> bool:
    first, second = [*meta["values"], meta.get("asked")][:2]
    match meta["form"]:
        case "holds" | "same":
            return bool(first == second)
        case "different":
            return bool(first != second)
        case "more" | "after":
            return int(first) > int(second)
    assert meta["form"] in ("fewer", "before")
    return int(first) < int(second)


class TestYesNo:
    def test_answer(self) -> None:
        for record in records("yesno"):
            values = record.meta["values"]
            assert record.target == ("yes" if is_true(record.meta) else "no")
            sentences = list(itertools.chain(*record.meta["told"]))
            for subject, value in zip(record.meta["subjects"], values, strict=True):
                assert subject in record.query
                (said,) = [each for each in sentences if subject.lower() in each.lower()]
                assert value.lower() in said.lower()


class TestQuote:
    def test_the_phrase_stands_in_one_sentence_about_the_subject(self) -> None:
        for record in records("quote"):
            subject = record.meta["subject"].lower()
            sentences = itertools.chain(*record.meta["told"])
            (said,) = [each for each in sentences if subject in each.lower()]
            assert record.target in said and subject in record.query.lower()
            assert any(record.target in branch.text for branch in record.branches)
            assert len(record.target.split()) >= 3


class TestLong:
    def test_answer(self) -> None:
        for record in records("long"):
            asked = record.meta["asked"]

            def told_of(subject: str, relation: str, facts: Any = record.meta["facts"]) -> str:
                (value,) = [value for each, of, value in facts if (each, of) == (subject, relation)]
                return str(value)

            found = told_of(asked["subject"], asked["relation"])
            if record.meta["asks"] == "join":
                found = told_of(found, asked["then"])
            assert found == record.target
            assert any(record.target in branch.text for branch in record.branches)

    def test_sentences_vary(self) -> None:
        branches = itertools.chain(*(record.branches for record in records("long")[:20]))
        sentences: list[str] = []
        for branch in branches:
            sentences += re.split(r"(?<=\.)\s+", branch.text)
        assert len(set(sentences)) > 0.85 * len(sentences)

    def test_the_links_of_a_join_are_told_in_two_branches(self) -> None:
        for record in records("long"):
            if record.meta["asks"] == "join":
                first = record.meta["asked"]["subject"].lower()
                sentences = [" ".join(told).lower() for told in record.meta["told"]]
                naming = {number for number, told in enumerate(sentences) if first in told}
                answer = record.target.lower()
                saying = {number for number, told in enumerate(sentences) if answer in told}
                assert len(naming) == 1 and saying - naming


def longest_run(numbers: list[int]) -> int:
    runs = [1]
    for before, number in itertools.pairwise(numbers):
        runs.append(runs[-1] + 1 if number > before else 1)
    return max(runs)


RIGHT: dict[str, Callable[..., int]] = {
    "even_sum": lambda numbers: sum(n for n in numbers if n % 2 == 0),
    "largest": max,
    "second": lambda numbers: sorted(set(numbers), reverse=True)[1],
    "run": longest_run,
    "spread": lambda numbers: max(numbers) - min(numbers),
    "above": lambda numbers, limit: sum(n > limit for n in numbers),
    "sum_above": lambda numbers, limit: sum(n for n in numbers if n > limit),
    "place": lambda numbers, limit: numbers.index(limit),
    "equal": lambda numbers, limit: numbers.count(limit),
    "sum_to": lambda limit: sum(range(limit + 1)),
    "digit_sum": lambda limit: sum(map(int, str(limit))),
    "top_digit": lambda limit: max(map(int, str(limit))),
    "divisors": lambda limit: sum(limit % n == 0 for n in range(1, limit + 1)),
    "vowels": lambda text: sum(map(text.count, "aeiou")),
    "consonants": lambda text: len(text) - sum(map(text.count, "aeiou")),
    "different": lambda text: len({*text}),
}


class TestCode:
    def test_answer(self, tmp_path: Path) -> None:
        """The versions are run as they stand in the branches."""
        seen = set()
        for record in records("code"):
            meta = record.meta
            value = RIGHT[meta["exercise"]](*meta["arguments"])
            seen.add(meta["exercise"])
            workers = []
            for branch in record.branches:
                (source,) = re.findall(r"```python\n(.*?)\n```", branch.text, re.DOTALL)
                file = tmp_path / "version.py"
                file.write_text(source)
                names = runpy.run_path(str(file))
                (function,) = [names[name] for name in names if not name.startswith("__")]
                (version,) = [each for each in meta["versions"] if each["worker"] in branch.text]
                assert function(*meta["arguments"]) == version["returns"], record.id
                assert version["right"] == (version["returns"] == value)
                if version["right"]:
                    workers.append(version["worker"])
            assert workers and len(workers) < len(record.branches)
            if meta["by_name"]:
                assert record.answers == tuple(workers)
                assert workers[0] not in record.query
            else:
                assert record.answers == (str(value),)
            assert record.query.count(f"({', '.join(map(repr, meta['arguments']))})") == 1
        assert seen == set(RIGHT)

    def test_the_target_names_every_flaw(self) -> None:
        for record in records("code"):
            for version in record.meta["versions"]:
                named = version["worker"] in record.target.rsplit("\n", 1)[0]
                assert named == (not version["right"])

    def test_the_query_does_not_say_what_the_function_is_to_do(self) -> None:
        for record in records("code"):
            docstring = re.findall(r'"""(.*?)"""', record.branches[0].text)[0]
            assert docstring not in record.query
