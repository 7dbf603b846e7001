"""`psynth report`: what has been done, as pictures and pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from psynth_jax.cli import view
from psynth_jax.cli.setting import console, write_json

report = typer.Typer(help="Draw what has been done.")


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


@report.command("eval")
def eval_(
    folders: Annotated[
        list[str],
        typer.Argument(help="of psynth eval: they have settings.json", metavar="DIR..."),
    ],
    into: Annotated[
        str | None,
        typer.Option(help="folder for the page and its pictures; DIR itself, if not given"),
    ] = None,
    limit_text: Annotated[
        int,
        typer.Option(help="keep so many characters of each text on the page; 0 keeps all"),
    ] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Draw evaluations: PNG files, and one HTML page with tables, figures and all questions."""
    from psynth_jax.reports.eval_report import report_eval

    found = report_eval(folders, into, limit_text or None)
    if as_json:
        write_json(found)
        return
    console.print(view.facts(_paths(found)))


def _paths(found: Mapping[str, Any]) -> dict[str, str]:
    """Name the page, then the pictures, a line each."""
    lines = {"page": found["page"]}
    for number, picture in enumerate(found["pictures"], start=1):
        lines[f"picture {number}"] = picture
    return lines
