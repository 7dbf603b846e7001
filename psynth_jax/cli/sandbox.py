"""`psynth sandbox`: what protects this machine from programs of a model, and a run of one."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psynth_jax.cli.options import AsJson
from psynth_jax.cli.setting import console, write_json
from psynth_jax.cli.streams import is_unicode

if TYPE_CHECKING:
    from psynth_jax.sandbox.check import Report
    from psynth_jax.sandbox.outcome import Outcome

sandbox = typer.Typer(help="Run Python programs that a model wrote, where they can do no harm.")

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and new lines


@sandbox.command()
def check(as_json: AsJson = False) -> None:
    """Try each back end on this machine, and say what it protects and how."""
    from psynth_jax.sandbox.check import check as look

    report = look()
    if as_json:
        write_json(dataclasses.asdict(report))
        return
    _show(report)


@sandbox.command()
def run(
    file: Annotated[str, typer.Argument(help="the program, a Python file")],
    backend: Annotated[str, typer.Option(help="auto, bubblewrap or landlock")] = "auto",
    seconds: Annotated[float, typer.Option(help="of wall time")] = 10.0,
    memory: Annotated[int, typer.Option(help="bytes, all processes together")] = 1 << 30,
    processes: Annotated[int, typer.Option(help="processes and threads")] = 32,
    output: Annotated[int, typer.Option(help="bytes on stdout and stderr")] = 1 << 20,
    files: Annotated[int, typer.Option(help="bytes in its folder")] = 64 << 20,
    as_json: AsJson = False,
) -> None:
    """Run a program in the sandbox.  The exit code is 0 whenever it ran, however it ended."""
    from psynth_jax.files import read_text
    from psynth_jax.sandbox import Limits, Sandbox

    limits = Limits(seconds, memory, processes, output, files)
    program = read_text(Path(file))
    outcome = Sandbox(limits, backend).run(program)
    if as_json:
        write_json(dataclasses.asdict(outcome))
        return
    _pass_on(outcome)


def _pass_on(outcome: Outcome) -> None:
    r"""Write what the program wrote, and a line that says how it ended.

    A terminal obeys control characters: it gets them as a text such as \x1b.
    """
    for stream, text in ((sys.stdout, outcome.stdout), (sys.stderr, outcome.stderr)):
        if stream.isatty():
            text = _CONTROLS.sub(_escaped, text)
        if not is_unicode(stream):
            text = text.encode("ascii", "backslashreplace").decode()
        stream.write(text)
        stream.flush()
    if outcome.stderr and not outcome.stderr.endswith("\n"):
        sys.stderr.write("\n")
    console.print(f"{_ending(outcome)} after {outcome.seconds:.2f} s")


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


def _ending(outcome: Outcome) -> str:
    if outcome.killed_for is None:
        return f"the program ended with exit code {outcome.exit_code}"
    if outcome.killed_for == "signal":
        number = 0 if outcome.exit_code is None else -outcome.exit_code
        return f"signal {number} ended the program"
    return f"the program was killed for its {outcome.killed_for}"


def _show(report: Report) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(f"kernel {report.kernel} on {report.machine}")
    console.print(f"Landlock version {report.landlock_version}, 0 is none")
    console.print(f"programs run as user: {report.user}")
    table = Table(box=box.ROUNDED, border_style="dim")
    for head in ("", *report.backends):
        table.add_column(Text(head))
    available = [_yes(each.available) for each in report.backends.values()]
    table.add_row("available", *available)
    for what in next(iter(report.backends.values())).protects:
        table.add_row(what, *(Text(each.protects[what]) for each in report.backends.values()))
    console.print(table)
    for name, each in report.backends.items():
        if each.why is not None:
            console.print(f"{name}: {each.why}", soft_wrap=True)
    console.print(f"auto takes {report.chosen or 'none: programs are refused'}")


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
