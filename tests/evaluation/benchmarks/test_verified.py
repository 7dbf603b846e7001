"""Values of answers: equal ones share a key, and what could keep SymPy busy is refused at once."""

from __future__ import annotations

import importlib.util
import threading

import pytest

from psynth_jax.errors import InputError
from psynth_jax.evaluation.benchmarks import verified
from psynth_jax.evaluation.benchmarks.gsm8k import GSM8K
from psynth_jax.evaluation.benchmarks.numbers import final_number
from tests.growth import assert_linear


@pytest.mark.parametrize(
    ("answers", "key"),
    [
        (["1,000", "1000.0", "1000", r"\$1{,}000", "10^3", r"2 \cdot 500", "x = 1000"], "1000"),
        (["0.5", r"\frac{1}{2}", r"\dfrac{2}{4}", ".50"], "1/2"),
        (["-7", "−7", "-7.0"], "-7"),
        ([r"\sqrt{2}", "2^{1/2}"], "141421356237/100000000000"),
        (["7 1/2", r"7\frac{1}{2}", "7½", "7.5"], "15/2"),
        (["18 20"], "18 20"),
        (["2(3)", "2 (3)"], "2(3)"),
        (["(18)(1)"], "(18)(1)"),
        (["{2}{3}"], "{2}{3}"),
        (["> 18"], ">18"),
        (["x + 1", "x+1"], "x+1"),
        ([r"\boxed{}"[7:-1], "", " "], ""),
    ],
)
def test_equal_answers_share_a_key(answers: list[str], key: str) -> None:
    assert [verified.value_key(answer) for answer in answers] == [key] * len(answers)


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9}}",
        "9^9^9",
        "10**10**10",
        "2^{1000000}",
        "(2^{999})^{999}",
        "1000000!",
        "100!!",
        "3! + 4!",
        "(" * 80 + "1" + ")" * 80,
        "9" * 300,
        "1" + "+1" * 200,
        r"\sum_{n=1}^{10^9} n^2",
        r"\int_0^1 \sin(t^t) dt",
        r"\sin(1)^{999}",
        "(a+b+c)^{999}",
        r"(\sqrt{2}+1)^{999}",
        r"\input{x}",
    ],
)
def test_what_could_take_long_is_refused(answer: str) -> None:
    assert not verified.is_bounded(answer)
    assert not verified.equal(answer, "18")


@pytest.mark.parametrize("filling", ["9", "a ", " ", "1 ", "1/", "100 ", "=1", "{", "$-", ".5"])
def test_work_grows_with_the_answer_alone(filling: str) -> None:
    def work(count: int) -> None:
        answer = filling * count
        assert not verified.equal(answer, "18")
        assert verified.value_key(answer) != "18"
        assert not verified.equal(final_number(f"It is {answer}"), "18")

    assert_linear(work, 5_000)


def test_works_in_any_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(verified.equal(r"\frac{36}{2}", "18")))
    thread.start()
    thread.join()
    assert found == [True]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"^answers in mathematics .* pip install 'psynth-jax\[evaluation\]'$"
    with pytest.raises(InputError, match=message):
        GSM8K("rows.jsonl").questions()
