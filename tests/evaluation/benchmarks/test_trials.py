"""Programs in the real sandbox: what they return is read, and what they may not do they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax import sandbox
from psynth_jax.errors import UserError
from psynth_jax.evaluation.benchmarks.trials import Output, Times, in_sandbox, run_test, try_program

QUICK = Times(call=1.0, all=60.0)


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    try:
        sandbox.Sandbox()
    except UserError as error:
        pytest.skip(str(error))


def tried(program: str, *arguments: object) -> list[Any]:
    """Return what was returned, or (for an exception) an output without its time, or None."""
    found: list[Any] = []
    for output in try_program(in_sandbox, program, "f", [[part] for part in arguments], QUICK):
        if output is None:
            found.append(None)
        else:
            found.append(Output("{}", output.error) if output.error else output.value())
    return found


def test_outputs() -> None:
    program = "def f(x):\n    print(x)\n    return (x, [1 / x])\n"
    assert tried(program, 2, 0, 4) == [(2, [0.5]), Output("{}", "ZeroDivisionError"), (4, [0.25])]


def test_a_late_call_is_the_last_one() -> None:
    program = "def f(x):\n    while x == 1: pass\n    return x\n"
    assert tried(program, 0, 1, 2) == [0, Output("{}", "Late"), None]


def test_no_function() -> None:
    assert tried("def g(x): return x\n", 1) == [None]
    assert tried("raise SystemExit(0)\n", 1) == [None]


def test_what_a_program_writes_past_python_spoils_nothing() -> None:
    program = "import os\ndef f(x):\n    os.write(1, b'no newline') if x == 1 else None\n    return x\n"
    assert tried(program, 1, 2) == [1, 2]


def test_streams_are_real() -> None:
    program = """
import faulthandler, io, sys
faulthandler.enable()
sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
sys.stderr.buffer.write(b"x")
def f(x):
    print("text", file=sys.__stdout__, flush=True)
    return sys.stdout.encoding, sys.stdout.fileno(), sys.stderr.fileno()
"""
    assert tried(program, 0) == [("utf-8", 1, 2)]


def test_a_call_that_waits_takes_no_processor_time() -> None:
    program = "import time\ndef f(x):\n    time.sleep(x)\n    return x\n"
    times = Times(call=0.5, all=60.0)  # 2 seconds of waiting
    found = try_program(in_sandbox, program, "f", [[0.75], [60]], times)
    assert found[0] is not None and found[0].value() == 0.75
    assert found[1] is not None and found[1].error == "Late"


def test_files_of_this_machine_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    program = f"def f(x): return open({str(tmp_path / 'secret')!r}).read()\n"
    (output,) = tried(program, 1)
    assert output in (Output("{}", "PermissionError"), Output("{}", "FileNotFoundError"))
    program = f"def f(x): return open({str(tmp_path / 'new')!r}, 'w').write('x')\n"
    tried(program, 1)
    assert not (tmp_path / "new").exists()


def test_programs_with_their_tests() -> None:
    assert run_test(in_sandbox, "def f(): return 1\nassert f() == 1\n", 10.0)
    assert not run_test(in_sandbox, "def f(): return 1\nassert f() == 2\n", 10.0)
    assert not run_test(in_sandbox, "raise SystemExit(0)\n", 10.0)
    assert not run_test(in_sandbox, "while True: pass\n", 0.5)


def test_no_file_tells_a_program_the_nonce() -> None:
    # It looks through its files for words of 32 digits, and prints them.
    program = """
import os, re, sys
for name in (sys.argv[0], *os.listdir(".")):
    for word in re.findall("[0-9a-f]{32}", open(name).read()):
        print("\\n" + word, flush=True)
os._exit(0)
"""
    assert not run_test(in_sandbox, program, 10.0)
