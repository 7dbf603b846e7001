"""The command `psynth`.  Answers and JSON go to stdout; progress, tables and errors go to stderr.

Exit codes: 0 done, 2 the user's input is wrong (one line, no traceback), 1 our fault (one line that names a file with
the traceback; PSYNTH_DEBUG=1 shows it), 130 interrupted, 129 SIGHUP, 143 SIGTERM.

Signals are listened for before anything heavy is imported: to import this module takes a few milliseconds.  Commands
declare their options without JAX, and import what they need when they run.
"""

from __future__ import annotations

import os
import sys

from psynth_jax.cli import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LONGEST_LINE = 2000  # characters


def main() -> None:
    """Run the command line; end the process with its exit code."""
    interrupts.install()
    try:
        code = _ended_code()
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(interrupts.exit_code(code))


def _ended_code() -> int:
    import warnings

    from psynth_jax.cli import streams

    streams.prepare()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = _show_warning
        try:
            code = _exit_code(sys.argv[1:] or ["--help"])
        except SystemExit as ended:  # of a signal, or of a command that has said why
            code = ended.code if isinstance(ended.code, int) else 1
        return streams.close(code)


def _exit_code(arguments: list[str]) -> int:
    import typer

    from psynth_jax.cli.commands import USAGE_ERROR, app
    from psynth_jax.errors import UserError

    try:
        return app(arguments, prog_name="psynth", standalone_mode=False) or 0
    except UserError as error:
        _say("error", error)
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "psynth"
        _say("error", f"{error.format_message().rstrip('.')}; see {where} --help")  # type: ignore[attr-defined]
    except typer.Abort:
        return 130
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        from psynth_jax.cli import internal_error

        kind, said, code = internal_error.told(error, arguments)  # a panic of Rust, too, which is no Exception
        _say(kind, said)
        return code
    return 2


def _say(kind: str, message: object) -> None:
    """Write one line; of one that a value of a file has made very long, the beginning and the end."""
    text = str(message).encode("utf-8", "backslashreplace").decode()  # bytes of arguments that are not UTF-8
    text = " ".join(text.split())
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE - 500]} ... {text[-500:]}"
    sys.stderr.write(f"{kind}: {text}\n")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """Tell people our own warnings in one line.  Those of libraries are for developers: `python -W default` shows them."""
    from pathlib import Path

    import psynth_jax

    if Path(psynth_jax.__file__).parent in Path(filename).parents:
        _say("warning", message)
