"""The program in an answer: 60 answers, for every benchmark of code."""

from __future__ import annotations

import time

import pytest

from psynth_jax.evaluation.benchmarks.fences import final_program, published_program

F = "def f(x):\n    return x\n"
G = "def g(x):\n    return 1\n"
TAGS = ["python", "Python", "PYTHON", "py", "python3", "Py", "python title=a.py"]
OTHERS = ["bash", "text", "json", "c++", "output"]
FENCES = ["```", "````", "~~~"]

ANSWERS = [
    *[(f"```{tag}\n{F}```", F) for tag in TAGS],
    *[(f"Text.\n\n```{tag}\n{F}```\nMore text.", F) for tag in TAGS],
    *[(f"```python\n{F}```\n```{tag}\nf(1)\n```", F) for tag in OTHERS],
    *[(f"```{tag}\nf(1)\n```", "") for tag in OTHERS],
    *[(f"{fence}python\n{F}{fence}", F) for fence in FENCES],
    *[(f"  {fence}python\n{F}  {fence}", F) for fence in FENCES],
    *[(f"{fence}\n{F}{fence}", F) for fence in FENCES],
    (f"```python\n{F}```\n```python\n{G}```", F),
    (f"```python\n{G}```\n```python\n{F}```", F),
    (f"```python\n{F}```\n```python\nprint(f(1))\n```", F),
    (f"```python\n{F}```\n```python\n{F}# again\n```", f"{F}# again\n"),
    (f"```python\n{G}```", G),
    (f"```python\n{F}```\n```\nf(1) = 1\n```", F),
    (f"```\n{F}```\n```\n1\n```", F),
    (f"```python\n{F}", F),
    (f"text ```python\n{F}```", ""),
    (f"```python\n{F}\n\n```", F),
    ("```python\nasync def f(x):\n    return x\n```", "async def f(x):\n    return x\n"),
    ("```python\nclass A:\n    def f(self): pass\n```", "class A:\n    def f(self): pass\n"),
    ("```python\ndef ff(x): pass\n```", "def ff(x): pass\n"),
    ("```python\nf = lambda x: x\n```", "f = lambda x: x\n"),
    ('```python\ndef f(x):\n    """```"""\n```', 'def f(x):\n    """```"""\n'),
    (f"<think>```python\n{G}```</think>```python\n{F}```", F),
    (f"<think>```python\n{F}```</think>I have none.", ""),
    (f"<think>\n```python\n{F}```", F),
    (f"```python\r\n{F}```", F),
    ("```python\n```", ""),
    ("```python\n\n\n```", ""),
    (F, ""),
    ("`def f(x): pass`", ""),
    ("No program.", ""),
    ("", ""),
    ("```", ""),
    (f"1. First:\n   ```python\n{F}   ```\n2. Then", F),
]


@pytest.mark.parametrize(("written", "program"), ANSWERS)
def test_answers(written: str, program: str) -> None:
    assert final_program(written, "f") == program


@pytest.mark.parametrize("filling", ["\n" * 200_000, "    " * 100_000 + "\n"])
def test_long_blanks_take_no_time(filling: str) -> None:
    started = time.process_time()
    assert final_program(f"```python\nx = 1\n{filling}y = 1\n```", "f").startswith("x = 1\n")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", ["`" * 100_000, "```" + " " * 100_000, "```" + "a" * 100_000])
def test_long_lines_without_an_end_take_no_time(text: str) -> None:
    started = time.process_time()
    assert final_program(text, "f") == ""
    assert time.process_time() - started < 2


def test_there_are_many() -> None:
    assert len(ANSWERS) >= 60


@pytest.mark.parametrize(
    ("written", "program"),
    [
        (f"```python\n{F}```\n```python\n{G}```", G.strip()),
        (f"```PYTHON\n{F}```", F.strip()),
        (f"```python3\n{F}```", f"3\n{F}".strip()),
        (f"```\n{F}```", ""),
        (f"```python\n{F}", ""),
        (f"<think>```python\n{F}```</think>", ""),
    ],
)
def test_the_published_rule(written: str, program: str) -> None:
    assert published_program(written) == program
