"""`psynth report`: what has been done, as pictures and pages."""

from __future__ import annotations

from typing import Annotated

import typer

from psynth_jax.cli import view
from psynth_jax.cli.setting import console, write_json

report = typer.Typer(help="Draw what has been done.")


@report.callback()
def _group() -> None:
    """Keep `train` a command of its own, though it is the only one."""


@report.command()
def train(
    workdir: Annotated[str, typer.Argument(help="of psynth train: it has metrics.jsonl")],
    into: Annotated[
        str | None, typer.Option(help="folder for the page and its pictures; WORKDIR/report, if not given")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Draw the curves of a training run: PNG files, and one HTML page that needs nothing else."""
    from psynth_jax.training.report import report_train

    found = report_train(workdir, into)
    if as_json:
        write_json(found)
        return
    console.print(view.facts({name: value for name, value in found.items() if not isinstance(value, list | dict)}))
