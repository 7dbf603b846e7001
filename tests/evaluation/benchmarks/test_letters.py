"""The letter of an answer: 70 answers, for every benchmark with options."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.choices import ChoiceBenchmark
from psynth_jax.evaluation.benchmarks.gpqa import GPQA
from psynth_jax.evaluation.benchmarks.letters import final_letter
from psynth_jax.evaluation.benchmarks.medqa import MedQA

ANSWERS = [
    (r"\boxed{A}", "A"),
    (r"\boxed{ b }", "B"),
    (r"\boxed{\text{B}}", "B"),
    (r"\boxed{\mathrm{A}}", "A"),
    (r"\boxed{\textbf{(A)}}", "A"),
    (r"\boxed{(C)}", "C"),
    (r"\boxed{[C]}", "C"),
    (r"\boxed{b)}", "B"),
    (r"\boxed{D. aspirin}", "D"),
    (r"\boxed{\text{D. aspirin}}", "D"),
    (r"\boxed{\text{(D) aspirin}}", "D"),
    (r"\boxed{C: renal failure}", "C"),
    (r"\boxed{B aspirin}", "B"),
    (r"\boxed{\text{B. } x^2}", "B"),
    (r"\boxed{\text{Option B}}", "B"),
    (r"\boxed{Answer: C}", "C"),
    (r"\boxed{**B**}", "B"),
    (r"\boxed{A} is wrong, \boxed{B}", "B"),
    (r"\boxed{A}, which is 5 in \boxed{5}", "A"),
    (r"The answer is \boxed{C}", "C"),
    (r"The answer is $\boxed{\textbf{C}}$.", "C"),
    (r"<think>\boxed{A}</think>\boxed{B}", "B"),
    (r"<think>\boxed{A}</think>The answer is C.", "C"),
    ("<think>The answer is A", "A"),
    ("The answer is B.", "B"),
    ("the answer is (d)", "D"),
    ("Answer: **C**", "C"),
    ("**Answer: C**", "C"),
    ("Answer: C) renal failure", "C"),
    ("Final answer:\nB", "B"),
    ("The answer is: D) renal failure", "D"),
    ("The answer is option D", "D"),
    ("the correct answer is (D) because of the lungs", "D"),
    ("The correct option is B, since it is so", "B"),
    ("correct choice: A", "A"),
    ("So option C is correct.", "C"),
    ("Choice (B) is the best answer", "B"),
    ("The most likely answer is **C. Something**", "C"),
    ("The best answer is therefore B", "B"),
    ("the answer should be A.", "A"),
    ("The answer would be C, because", "C"),
    ("answer = D", "D"),
    ("Answer: A, not B", "A"),
    ("The answer is not A. The answer is B.", "B"),
    ("The answer is A. No, wait: the answer is D.", "D"),
    ("答案是B", "B"),
    ("答案：C", "C"),
    ("正解はD", "D"),
    ("La respuesta es D.", "D"),
    ("La respuesta correcta es: A", "A"),
    ("Die Antwort ist B.", "B"),
    ("La réponse est C", "C"),
    ("Ответ: B", "B"),
    ("B", "B"),
    ("B.", "B"),
    ("**D**", "D"),
    ("I think so.\n(B)", "B"),
    ("I think so.\n\nC)\n", "C"),
    ("A patient with fever", ""),
    ("The answer is a matter of taste", ""),
    ("The answer is A patient", ""),
    ("I would choose one", ""),
    (r"\boxed{A, B}", ""),
    (r"\boxed{A or C}", ""),
    (r"\boxed{A and B}", ""),
    (r"\boxed{42}", ""),
    (r"\boxed{}", ""),
    (r"\boxed{E}", ""),
    ("The answer is basic.", ""),
    ("The answer is Alcohol, a drug.", ""),
    ("Option bc: is it?", ""),
    ("**Answer:** B", "B"),
    ("The final answer is: $\\mathbf{C}$", "C"),
    ("answer: 'D'", "D"),
    ("The answer is C because of the lungs", "C"),
    ("The answer is A because of the lungs", "A"),
    ("The answer is A's opposite", ""),
    ("The answer is E", ""),
    ("The answer is 4", ""),
    ("", ""),
]


@pytest.mark.parametrize("benchmark", [GPQA("rows.jsonl"), MedQA("rows.jsonl")], ids=["gpqa", "medqa"])
@pytest.mark.parametrize(("written", "letter"), ANSWERS)
def test_answers(benchmark: ChoiceBenchmark, written: str, letter: str) -> None:
    right = BenchmarkQuestion("0", "t", "?", (), (letter or "A",), details={"options": 4})
    others = "".join(sorted({*"ABCD"} - {letter}))
    wrong = BenchmarkQuestion("0", "t", "?", (), (others[0],), details={"options": 4})
    found, scores = benchmark.judged(written, right)
    assert found == letter == benchmark.vote_key(written, right)
    assert scores["accuracy"] == float(bool(letter))
    assert benchmark.judged(written, wrong)[1]["accuracy"] == 0.0


def test_more_options() -> None:
    assert final_letter(r"\boxed{E}", 5) == "E"
    assert final_letter("The answer is F", 5) == ""
