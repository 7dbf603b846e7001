"""The command `psynth`.  Answers and JSON go to stdout; progress, tables and errors go to stderr.

Exit codes: 0 done, 2 the user's input is wrong (one line, no traceback), 1 our fault (one line that
names a file with the traceback; PSYNTH_DEBUG=1 shows it), 130 interrupted, 143 SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import typer

import psynth_jax
from psynth_jax.cli import internal_error
from psynth_jax.cli.bench import bench
from psynth_jax.cli.compile import compile_
from psynth_jax.cli.convert import convert, merge, pull, push
from psynth_jax.cli.data import data
from psynth_jax.cli.eval import eval_
from psynth_jax.cli.info import info
from psynth_jax.cli.report import report
from psynth_jax.cli.run import run
from psynth_jax.cli.train import TERMINATED, export, train
from psynth_jax.errors import UserError

app = typer.Typer(
    name="psynth",
    help="Parallel workers answer, a synthesizer reads their KV caches.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(train)
app.command()(export)
app.command("eval")(eval_)
app.command("compile")(compile_)
app.command()(convert)
app.command()(merge)
app.command()(push)
app.command()(pull)
app.command()(info)
app.add_typer(bench, name="bench")
app.add_typer(report, name="report")
app.add_typer(data, name="data")

# What the command line parser raises for a wrong option.  Its home has moved between versions of typer, its child has not.
USAGE_ERROR: type[BaseException] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_LONGEST_LINE = 2000  # characters


def main() -> None:
    """Run the command line; end the process with its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = _show_warning
        raise SystemExit(_exit_code(sys.argv[1:] or ["--help"]))


def _terminated(*_: object) -> None:
    """End as an error would, so that what is half written is removed; `psynth train` saves first (`training.preemption`)."""
    raise SystemExit(TERMINATED)


def _exit_code(arguments: list[str]) -> int:
    try:
        return app(arguments, prog_name="psynth", standalone_mode=False) or 0
    except UserError as error:
        _say("error", error)
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "psynth"
        _say("error", f"{error.format_message().rstrip('.')}; see {where} --help")  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        kind, said, code = internal_error.told(error, arguments)  # a panic of Rust, too, which is no Exception
        _say(kind, said)
        return code
    return 2


def _say(kind: str, message: object) -> None:
    """Write one line; of one that a value of a file has made very long, the beginning and the end."""
    text = " ".join(str(message).split())
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE - 500]} ... {text[-500:]}"
    sys.stderr.write(f"{kind}: {text}\n")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """Tell people our own warnings in one line.  Those of libraries are for developers: `python -W default` shows them."""
    if Path(psynth_jax.__file__).parent in Path(filename).parents:
        _say("warning", message)
