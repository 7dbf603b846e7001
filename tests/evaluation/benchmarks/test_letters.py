"""The letter of an answer: 150 answers, for every benchmark with options."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.choices import ChoiceBenchmark
from psynth_jax.evaluation.benchmarks.gpqa import GPQA
from psynth_jax.evaluation.benchmarks.letters import final_letter
from psynth_jax.evaluation.benchmarks.medqa import MedQA
from tests.growth import assert_linear

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
    ("B) aspirin", "B"),
    ("B. aspirin", "B"),
    ("**B) aspirin**", "B"),
    ("(C) is correct", "C"),
    ("C is the correct answer", "C"),
    ("Thus C is correct.", "C"),
    ("The answer must be B", "B"),
    ("The answer is not A but B", "B"),
    ("The answer is not (A), but rather (B).", "B"),
    ("The answer is the letter B", "B"),
    ("Option B", "B"),
    ("Answer D", "D"),
    ("Answer - D", "D"),
    ("Answer – D) renal failure", "D"),
    ("answer: b", "B"),
    ("answer: a", "A"),
    ("the answer is b.", "B"),
    ("the answer is a", ""),
    ("The answer is `D`", "D"),
    ("Therefore, B.", "B"),
    ("The lungs are full of it. Therefore, B.", "B"),
    ("It must be C", "C"),
    ("I choose B", "B"),
    ("I would go with option C because of the lungs", "C"),
    ("Ｂ", "B"),
    ("Ａｎｓｗｅｒ：（Ｃ）", "C"),
    (r"\boxed{Ｂ}", "B"),
    ("**Answer:**\n\n**B**", "B"),
    (r"The answer is \(B\).", "B"),
    ("The answer is most likely B.", "B"),
    ("I think B is right because of the lungs", "B"),
    ("I looked at all.\nB. aspirin", "B"),
    ("B. aspirin\nIt stops COX.", "B"),
    ("A. one\nB. two\nC. three\nD. four", ""),
    ("A) No.\nB) Yes.\nC) No.\n\nB) aspirin", "B"),
    ("A) is wrong.\nB) is wrong.", ""),
    ("Let me see.\nA. one\nB. two\nThat is all.", ""),
    ("The answer is B or C", ""),
    ("The answer is B and C", ""),
    ("The answer is B or C because of the lungs", ""),
    ("The answer is A. Or, the answer is B or C", ""),
    ("Answer: A, B", ""),
    ("Answer: A, B and D", ""),
    ("Answer: A/B", ""),
    ("Answer: (A) (B)", ""),
    ("**Answer: A** or **B**", ""),
    (r"\boxed{A, B, C}", ""),
    (r"\boxed{A/B}", ""),
    (r"The answer is \boxed{A or C}", ""),
    (r"\boxed{B. A and C}", "B"),
    ("The answer is B, C is wrong", "B"),
    ("The answer is B. C is wrong", "B"),
    ("The answer is B and not C", "B"),
    ("The answer is D-dimer", ""),
    ("The answer is B cell lymphoma", ""),
    (r"\boxed{B lymphocytes}", ""),
    ("The answer is A Western blot", ""),
    ("Answer: A 4-year-old girl", ""),
    ("The answer is A\nIt is so.", "A"),
    ("B-cell lymphoma", ""),
    (r"\boxed{B-cell lymphoma}", ""),
    ("C. difficile", ""),
    ("Answer: C. difficile", ""),
    ("The answer is **C. difficile**.", ""),
    (r"\boxed{C. difficile}", ""),
    (r"\boxed{\text{C. difficile}}", ""),
    (r"The answer is \boxed{C. difficile}", ""),
    ("The answer is B. C. difficile", "B"),
    ("B12", ""),
    (r"\boxed{B12}", ""),
    ("The answer is B12", ""),
    ("The answer is B₁₂", ""),
    (r"The answer is $B_{12}$", ""),
    ("The option: C is wrong", ""),
    ("The answer: C is not right", ""),
    ("Vitamin C is correct", ""),
    ("A and B is correct", ""),
    ("A, B is correct", ""),
    ("Option C is right heart failure", ""),
    ("B.C. was long ago", ""),
    ("The answer is E", ""),
    ("The answer is 4", ""),
    ("", ""),
]
BENCHMARKS = [GPQA("rows.jsonl"), MedQA("rows.jsonl")]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=["gpqa", "medqa"])
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
    assert final_letter("Answer: I", 9) == "I"
    assert final_letter("Answer: I think so", 9) == ""
    assert final_letter(r"\boxed{E. coli}", 5) == "" == final_letter("The answer is E. coli", 5)


FILLINGS = [" ", "\n", "*", "\\a", "answer is ", "not A but ", "the option ", "A, "]


@pytest.mark.parametrize("filling", FILLINGS)
def test_work_grows_with_the_text_alone(filling: str) -> None:
    def work(count: int) -> None:
        for begin in ("The answer is ", "So the option", "I choose "):
            assert final_letter(begin + filling * count + "?") == ""

    assert_linear(work, 5_000)
