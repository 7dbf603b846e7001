"""The final number of an answer, and its value: 150 answers, for every benchmark of numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from psynth_jax.evaluation.benchmarks.aime import AIME24
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.gsm8k import GSM8K
from psynth_jax.evaluation.benchmarks.mathematics import MathBenchmark
from psynth_jax.evaluation.benchmarks.numbers import final_number, plain_number

# What was written, the answer in it, a gold number that it equals.
# None: it equals none of 18, 1 and 5.
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
    ("about 1/2", "1/2", "0.5"),
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
    (
        r"\boxed{5\text{ hours and }30\text{ minutes}}",
        r"5\text{ hours and }30\text{ minutes}",
        None,
    ),
    (r"\boxed{18°}", "18°", "18"),
    (r"\boxed{18°C}", "18°C", "18"),
    (r"\boxed{18^{\circ}\text{C}}", r"18^{\circ}\text{C}", "18"),
    (r"\boxed{½}", "½", "0.5"),
    (r"\boxed{1½}", "1½", "1.5"),
    (r"\boxed{½ cup}", "½ cup", "0.5"),
    (r"\boxed{a = b = 18}", "a = b = 18", "18"),
    (r"\boxed{3 \cdot 6 = 2 \cdot 9 = 18}", r"3 \cdot 6 = 2 \cdot 9 = 18", "18"),
    (r"\boxed{x = 18 = y}", "x = 18 = y", "18"),
    (r"\boxed{₹18}", "₹18", "18"),
    (r"\boxed{US\$18}", r"US\$18", "18"),
    (r"\boxed{\text{Rs. }18}", r"\text{Rs. }18", "18"),
    (r"\boxed{Rs.18}", "Rs.18", "18"),
    (r"\boxed{18^{\text{th}}}", r"18^{\text{th}}", "18"),
    (r"\boxed{18^{th}}", "18^{th}", "18"),
    (r"\boxed{18th}", "18th", "18"),
    (r"\boxed{\mathsf{18}}", r"\mathsf{18}", "18"),
    (r"\boxed{\rm{18}}", r"\rm{18}", "18"),
    (r"\boxed{\bf 18}", r"\bf 18", "18"),
    (r"\boxed{-\$18}", r"-\$18", "-18"),
    (r"\boxed{1 1/2}", "1 1/2", "1.5"),
    (r"\boxed{-1 1/2}", "-1 1/2", "-1.5"),
    (r"\boxed{1\,\frac12 \text{ cups}}", r"1\,\frac12 \text{ cups}", "1.5"),
    (r"\boxed{1 1/2 \times 2}", r"1 1/2 \times 2", "3"),
    (r"\boxed{\sqrt{2 1/4}}", r"\sqrt{2 1/4}", "1.5"),
    (r"\boxed{2\sqrt{81}}", r"2\sqrt{81}", "18"),
    (r"\boxed{\frac {36}{2}}", r"\frac {36}{2}", "18"),
    (r"\boxed{\sqrt[3]{8}}", r"\sqrt[3]{8}", "2"),
    ("The profit is -$7.", "-7", "-7"),
    ("The profit is −$5.", "-5", "-5"),
    (r"The profit is -\$18.", "-18", "-18"),
    ("It lost −€5", "-5", "-5"),
    ("$10-$7", "7", "7"),
    ("$18$-$20$", "20", "20"),
    ("It is .5", ".5", "0.5"),
    ("It is $.50.", ".50", "0.5"),
    ("It is -.5.", "-.5", "-0.5"),
    ("It is 1e6.", "1e6", "1000000"),
    ("It is 2.5e-1", "2.5e-1", "0.25"),
    ("It is 3/4.", "3/4", "0.75"),
    ("It is -3/4.", "-3/4", "-0.75"),
    ("It is 1 1/2.", "1 1/2", "1.5"),
    ("It is 1½ cups", "1 1/2", "1.5"),
    (r"It is $1\frac{1}{2}$ cups", r"1\frac{1}{2}", "1.5"),
    ("By 2024 3/4 were gone", "3/4", "0.75"),
    ("There are 3/4 left, so 12", "12", "12"),
    ("She has 12 left on 5/6/2024.", "12", "12"),
    ("She has 12 left on 2024-06-05.", "12", "12"),
    ("It is 1 234", "1234", "1234"),
    ("It is 1\u2009234\u2009567 m", "1234567", "1234567"),
    ("It is 1\u202f234,", "1234", "1234"),
    (r"It is $1{,}234$", "1234", "1234"),
    ("First 1\n234", "234", "234"),
    ("She has 3 100-dollar bills", "100", "100"),
    (r"\boxed{> 18}", "> 18", None),
    (r"\boxed{\le 18}", r"\le 18", None),
    (r"\boxed{x \geq 18}", r"x \geq 18", None),
    (r"\boxed{<= 18}", "<= 18", None),
    (r"\boxed{x != 18}", "x != 18", None),
    (r"\boxed{≥ 18}", "≥ 18", None),
    (r"\boxed{\text{at least } 18}", r"\text{at least } 18", None),
    (r"\boxed{x = 5, y = 18}", "x = 5, y = 18", None),
    (r"\boxed{x = 5 \text{ or } x = 18}", r"x = 5 \text{ or } x = 18", None),
    (r"\boxed{2(3)}", "2(3)", None),
    (r"\boxed{(18)(1)}", "(18)(1)", None),
    (r"\boxed{1 5/4}", "1 5/4", None),
    (r"\boxed{1 4}", "1 4", None),
    (r"\boxed{18 20}", "18 20", None),
    ("It is 18/0", "18/0", None),
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


BENCHMARKS = [GSM8K("rows.jsonl"), AIME24("rows.jsonl")]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=["gsm8k", "aime24"])
@pytest.mark.parametrize(("written", "answer", "gold"), ANSWERS)
def test_answers(benchmark: MathBenchmark, written: str, answer: str, gold: str | None) -> None:
    found, scores = benchmark.judged(written, asked(gold or "18"))
    assert found == answer == final_number(written)
    assert scores["accuracy"] == (0.0 if gold is None else 1.0)
    assert benchmark.judged(written, asked("77"))[1]["accuracy"] == 0.0
    if gold is None:
        assert [benchmark.judged(written, asked(other))[1]["accuracy"] for other in ("1", "5")] == [
            0.0,
            0.0,
        ]


def test_a_mixed_number_is_not_its_whole_part() -> None:
    task = GSM8K("rows.jsonl")
    told = {"1": 0.0, "2": 0.0, "1.5": 1.0}
    for gold, accuracy in told.items():
        assert task.judged(r"\boxed{1 1/2}", asked(gold))[1]["accuracy"] == accuracy


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
