"""The final number of an answer, and whether it has the right value: 70 answers, for every benchmark of numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from psynth_jax.evaluation.benchmarks.aime import AIME24
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.gsm8k import GSM8K
from psynth_jax.evaluation.benchmarks.mathematics import MathBenchmark
from psynth_jax.evaluation.benchmarks.numbers import final_number, plain_number

# What was written, the answer in it, a gold number that it equals; None: it equals none of 18, 1 and 5.
ANSWERS = [
    (r"So it is \boxed{18}.", "18", "18"),
    ("It is 18 dollars.", "18", "18"),
    ("so 5+3 = 8.", "8", "8"),
    ("7-3=4", "4", "4"),
    ("7-3", "3", "3"),
    (r"\boxed{1,234}", "1,234", "1234"),
    ("It is 1,234.", "1,234", "1234"),
    (r"\boxed{1{,}234}", "1{,}234", "1234"),
    (r"\boxed{1\,234}", r"1\,234", "1234"),
    (r"\boxed{1 234 567}", "1 234 567", "1234567"),
    ("The total is $1,234.50.", "1,234.50", "1234.5"),
    (r"\boxed{\$18}", r"\$18", "18"),
    (r"\boxed{$18$}", "$18$", "18"),
    (r"\boxed{18\%}", r"18\%", "18"),
    ("It fell by 50%.", "50", "50"),
    (r"\boxed{18\text{ dollars}}", r"18\text{ dollars}", "18"),
    (r"\boxed{18 \text{ kg}}", r"18 \text{ kg}", "18"),
    (r"\boxed{18 eggs}", "18 eggs", "18"),
    (r"\boxed{18 years old}", "18 years old", "18"),
    (r"\boxed{18~\text{m/s}}", r"18~\text{m/s}", "18"),
    (r"\boxed{12\,\mathrm{cm}^2}", r"12\,\mathrm{cm}^2", "12"),
    (r"\boxed{10 \text{ a.m.}}", r"10 \text{ a.m.}", "10"),
    (r"\boxed{60^\circ}", r"60^\circ", "60"),
    (r"\boxed{-7}", "-7", "-7"),
    ("It is −7.", "-7", "-7"),
    (r"\boxed{+7}", "+7", "7"),
    (r"\boxed{٣}", "٣", "3"),
    ("答案是１８", "18", "18"),
    ("La respuesta es 18 euros", "18", "18"),
    (r"Ответ: \boxed{18 рублей}", "18 рублей", "18"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "0.5"),
    (r"\boxed{\dfrac{10}{4}}", r"\dfrac{10}{4}", "2.5"),
    (r"\boxed{2^{10}}", "2^{10}", "1024"),
    (r"\boxed{10^6}", "10^6", "1000000"),
    (r"\boxed{\sqrt{4}}", r"\sqrt{4}", "2"),
    (r"\boxed{3!}", "3!", "6"),
    (r"\boxed{5 + 3}", "5 + 3", "8"),
    (r"\boxed{2 \cdot 3}", r"2 \cdot 3", "6"),
    (r"\boxed{2 \times 3}", r"2 \times 3", "6"),
    (r"\boxed{\left(18\right)}", r"\left(18\right)", "18"),
    (r"\boxed{x=18}", "x=18", "18"),
    (r"\boxed{m+n = 25}", "m+n = 25", "25"),
    (r"\boxed{18 = x}", "18 = x", "18"),
    (r"\boxed{\text{18}}", r"\text{18}", "18"),
    (r"\boxed{\mathbf{18}}", r"\mathbf{18}", "18"),
    (r"\boxed{\text{The answer is } 18}", r"\text{The answer is } 18", "18"),
    (r"\boxed{18.}", "18.", "18"),
    (r"\boxed{18.0}", "18.0", "18"),
    (r"\boxed{073}", "073", "73"),
    (r"\boxed{1e3}", "1e3", "1000"),
    (r"\boxed{{18}}", "{18}", "18"),
    (r"\boxed{\boxed{18}}", "18", "18"),
    (r"\boxed{18} no, \boxed{19}", "19", "19"),
    (r"\boxed{19} and \boxed{\frac{36}{2}}", r"\frac{36}{2}", "18"),
    (r"<think>\boxed{5}</think>\boxed{6}", "6", "6"),
    ("<think>5</think>\n**6**", "6", "6"),
    ("<think>first 5, then 6", "6", "6"),
    ("<think>a</think> 4 <think>b</think> 5", "5", "5"),
    (r"cut off: \boxed{18", "18", "18"),
    ("3.14.", "3.14", "3.14"),
    ("about 1/2", "2", "2"),
    ("1000000", "1000000", "1000000"),
    (r"\boxed{20\,\text{€}}", r"20\,\text{€}", "20"),
    (r"\boxed{18\text{ m}}", r"18\text{ m}", "18"),
    (r"\boxed{18\,\text{m}^2}", r"18\,\text{m}^2", "18"),
    (r"\boxed{\frac{3}{4}\text{ cup}}", r"\frac{3}{4}\text{ cup}", "0.75"),
    (r"\boxed{2\frac{1}{2}}", r"2\frac{1}{2}", "2.5"),
    (r"\boxed{1.8\times 10^4}", r"1.8\times 10^4", "18000"),
    (r"\boxed{\textcolor{blue}{18}}", r"\textcolor{blue}{18}", "18"),
    (r"\boxed{\approx 18}", r"\approx 18", "18"),
    (r"\boxed{\text{Janet makes } \$18}", r"\text{Janet makes } \$18", "18"),
    (r"\boxed{5\text{ hours and }30\text{ minutes}}", r"5\text{ hours and }30\text{ minutes}", None),
    (r"\boxed{}", "", None),
    ("<think>5</think>", "", None),
    ("no number at all", "", None),
    ("", "", None),
    (r"\boxed{18, 19}", "18, 19", None),
    (r"\boxed{18 \text{ or } 19}", r"18 \text{ or } 19", None),
    (r"\boxed{x}", "x", None),
    (r"\boxed{5:00}", "5:00", None),
    (r"\boxed{-18}", "-18", None),
    (r"\boxed{\frac{1}{0}}", r"\frac{1}{0}", None),
    (r"\boxed{\text{none}}", r"\text{none}", None),
]


def asked(gold: str) -> BenchmarkQuestion:
    return BenchmarkQuestion("0", "gsm8k", "?", (), (gold,), details={"published": gold})


@pytest.mark.parametrize("benchmark", [GSM8K("rows.jsonl"), AIME24("rows.jsonl")], ids=["gsm8k", "aime24"])
@pytest.mark.parametrize(("written", "answer", "gold"), ANSWERS)
def test_answers(benchmark: MathBenchmark, written: str, answer: str, gold: str | None) -> None:
    found, scores = benchmark.judged(written, asked(gold or "18"))
    assert found == answer == final_number(written)
    assert scores["accuracy"] == (0.0 if gold is None else 1.0)
    assert benchmark.judged(written, asked("77"))[1]["accuracy"] == 0.0
    if gold is None:
        assert [benchmark.judged(written, asked(other))[1]["accuracy"] for other in ("1", "5")] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1,000", Fraction(1000)),
        ("1000.50", Fraction(2001, 2)),
        ("-.5", Fraction(-1, 2)),
        ("12,34", None),
        ("1,2345", None),
        ("1/2", None),
        (".", None),
        ("", None),
        ("9" * 300, None),
        ("inf", None),
    ],
)
def test_plain_numbers(answer: str, value: Fraction | None) -> None:
    assert plain_number(answer) == value
