"""The commands of `psynth`.  Imports no JAX: help is shown at once, and a command imports what it needs."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import psynth_jax
from psynth_jax.cli import interrupts
from psynth_jax.cli.bench import bench
from psynth_jax.cli.checks import check_unicode
from psynth_jax.cli.compile import compile_
from psynth_jax.cli.convert import convert, merge, pull, push
from psynth_jax.cli.data import data
from psynth_jax.cli.eval import eval_
from psynth_jax.cli.info import info
from psynth_jax.cli.report import report
from psynth_jax.cli.run import run
from psynth_jax.cli.sandbox import sandbox
from psynth_jax.cli.score import score
from psynth_jax.cli.setting import activity
from psynth_jax.cli.train import export, train
from psynth_jax.devices import check_xla_flags, import_jax

# What the command line parser raises for a wrong option.  Its home has moved between versions of typer, its child has not.
USAGE_ERROR: type[BaseException] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="psynth",
    help="Parallel workers answer, a synthesizer reads their KV caches.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


# Commands that write no file: a signal may end them on the spot.
READERS = frozenset({"run", "score", "info", "ttft", "decode", "error", "show"})

# Files that may be `-`: command -> option -> how the name of such a file ends.
FILES = {
    "eval": {"data": ".jsonl"},
    "score": {"data": ".jsonl"},
    "prepare": {"given": ".jsonl"},
    "attempts": {"questions": ".jsonl"},
    "compile": {"matrix": ".yaml"},
    "train": {"config": ".yaml"},
}
# What these name is read as text by Python alone, whatever the bytes of its name; what they say is checked where it is read.
TEXTS = frozenset({"question", "branch", "roles", "data", "given", "questions", "matrix", "config"})


class JaxCommand(TyperCommand):
    """A command that runs JAX: what the environment says wrongly is refused in one line before anything imports JAX."""

    def invoke(self, ctx: Any) -> Any:
        """Import JAX, then run the command."""
        with activity("starting JAX"):
            check_xla_flags()
            import_jax()
        check_unicode({name: value for name, value in ctx.params.items() if name not in TEXTS})
        if ctx.info_name not in READERS:
            interrupts.begin_to_write()
        with contextlib.ExitStack() as kept:
            _read_standard_input(ctx, kept)
            return super().invoke(ctx)


def _read_standard_input(ctx: Any, kept: contextlib.ExitStack) -> None:
    """Give a command that was told `-` in place of a file a file with what is on standard input, for as long as `kept`."""
    for name, suffix in FILES.get(ctx.info_name, {}).items():
        if str(ctx.params.get(name)) == "-":
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="psynth-"))
            file = Path(folder) / f"standard-input{suffix}"
            file.write_bytes(sys.stdin.buffer.read())
            ctx.params[name] = type(ctx.params[name])(file)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"psynth {psynth_jax.__version__}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Take the options of `psynth` itself."""


def _add_commands() -> None:
    commands: dict[str, Callable[..., None]] = {
        "run": run, "train": train, "export": export, "eval": eval_, "score": score, "compile": compile_, "convert": convert,
        "merge": merge, "push": push, "pull": pull, "info": info,
    }  # fmt: skip
    for name, function in commands.items():
        app.command(name, cls=JaxCommand)(function)
    for name, group in {"bench": bench, "report": report, "data": data}.items():
        for command in group.registered_commands:
            command.cls = JaxCommand
        app.add_typer(group, name=name)
    app.add_typer(sandbox, name="sandbox")  # it needs no JAX


_add_commands()
