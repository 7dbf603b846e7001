"""Programs in the real sandbox: what they return is read, and what they may not do they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax import sandbox
from psynth_jax.errors import UserError
from psynth_jax.evaluation.benchmarks.trials import Output, Times, in_sandbox, run_test, try_program

QUICK = Times(call=0.5, all=20.0)


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    try:
        sandbox.Sandbox()
    except UserError as error:
        pytest.skip(str(error))


def tried(program: str, *arguments: object) -> list[Output | None]:
    found = try_program(in_sandbox, program, "f", [[argument] for argument in arguments], QUICK)
    return [None if output is None else Output(output.value, output.error) for output in found]


def test_outputs() -> None:
    program = "def f(x):\n    print(x)\n    return (x, [1 / x])\n"
    assert tried(program, 2, 0, 4) == [Output((2, [0.5])), Output(None, "ZeroDivisionError"), Output((4, [0.25]))]


def test_a_late_call_is_the_last_one() -> None:
    program = "def f(x):\n    while x == 1: pass\n    return x\n"
    assert tried(program, 0, 1, 2) == [Output(0), Output(None, "Late"), None]


def test_no_function() -> None:
    assert tried("def g(x): return x\n", 1) == [None]
    assert tried("raise SystemExit(0)\n", 1) == [None]


def test_what_a_program_writes_past_python_spoils_nothing() -> None:
    program = "import os\ndef f(x):\n    os.write(1, b'no newline') if x == 1 else None\n    return x\n"
    assert tried(program, 1, 2) == [Output(1), Output(2)]


def test_files_of_this_machine_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    program = f"def f(x): return open({str(tmp_path / 'secret')!r}).read()\n"
    (output,) = tried(program, 1)
    assert output is not None and output.value is None and output.error in ("PermissionError", "FileNotFoundError")
    program = f"def f(x): return open({str(tmp_path / 'new')!r}, 'w').write('x')\n"
    tried(program, 1)
    assert not (tmp_path / "new").exists()


def test_programs_with_their_tests() -> None:
    assert run_test(in_sandbox, "def f(): return 1\nassert f() == 1\n", 10.0)
    assert not run_test(in_sandbox, "def f(): return 1\nassert f() == 2\n", 10.0)
    assert not run_test(in_sandbox, "raise SystemExit(0)\n", 10.0)
    assert not run_test(in_sandbox, "while True: pass\n", 0.5)
