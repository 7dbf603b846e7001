"""The command `psynth`.  Answers and JSON go to stdout; progress, tables and errors go to stderr.

Exit codes: 0 done, 2 the user's input is wrong (one line, no traceback), 1 our fault.
"""

from __future__ import annotations

import os
import sys

import typer

from psynth_jax.cli.bench import bench
from psynth_jax.cli.info import info
from psynth_jax.cli.run import run
from psynth_jax.errors import UserError

app = typer.Typer(
    name="psynth",
    help="Parallel workers answer, a synthesizer reads their KV caches.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(info)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line; end the process with its exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        # Whoever read our output has stopped; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
