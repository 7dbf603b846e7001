"""`psynth score`: how surprised an adapter, or two, are by the right answers of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from psynth_jax.cli import adapter_choice
from psynth_jax.cli.checks import check_dtype, check_mesh
from psynth_jax.cli.options import AsJson, Dtype, MeshAxes, ModelName
from psynth_jax.cli.setting import activity, console, load, write_json
from psynth_jax.cli.tables import NumberTable
from psynth_jax.errors import InputError

if TYPE_CHECKING:
    from psynth_jax.data.record import Record
    from psynth_jax.evaluation.intervals import Interval
    from psynth_jax.evaluation.likelihood import TaskLikelihood
    from psynth_jax.model import Model


def score(
    data: Annotated[str, typer.Option(help="file of records with targets: .jsonl or .jsonl.gz, or - for stdin")],
    model: ModelName = "smollm2-135m",
    adapter: Annotated[str | None, typer.Option(help=adapter_choice.HELP)] = None,
    against: Annotated[str | None, typer.Option(help="another adapter (or none), compared on the same records")] = None,
    reads: Annotated[str, typer.Option(help="branches (their caches) or text (concatenated)")] = "branches",
    limit: Annotated[int | None, typer.Option(help="the first so many records only")] = None,
    batch: Annotated[int, typer.Option(help="records that are scored at once")] = 8,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    dtype: Dtype = "float32",
    mesh: MeshAxes = None,
    as_json: AsJson = False,
) -> None:
    """Score the targets of a file: their negative log-likelihood a token, by task."""
    from psynth_jax.evaluation.likelihood import by_task

    check_dtype(dtype)
    check_mesh(mesh)
    records = _records(data, reads, limit, batch)
    for name in (adapter, against):
        adapter_choice.check_adapter(name)
    loaded = load(model, dtype, mesh)
    chosen = adapter_choice.choose_adapter(adapter, loaded)
    if not as_json:
        adapter_choice.say_adapter(adapter, chosen, loaded)
    adapters = [chosen]
    if against is not None:
        adapters.append(adapter_choice.choose_adapter(against, loaded))
    scored = _scored(loaded, adapters, records, reads, batch)
    found = by_task(records, scored[0], scored[1] if against is not None else None, seed)
    if as_json:
        write_json({task: dataclasses.asdict(each) for task, each in found.items()})
        return
    console.print(_table(found))


def _records(data: str, reads: str, limit: int | None, batch: int) -> list[Record]:
    """Read the records.  Raises `InputError` for options that say nothing useful, and what `read_records` raises."""
    import itertools

    from psynth_jax.data.record import read_records

    if reads not in ("branches", "text"):
        raise InputError(f"--reads must be branches or text, got {reads!r}")
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    records = list(itertools.islice(read_records(data), limit))
    if not records:
        raise InputError(f"{data} has no record to be scored")
    return records


def _scored(model: Model, adapters: Sequence[Any], records: Sequence[Record], reads: str, batch: int) -> list[list[float]]:
    from psynth_jax.evaluation.likelihood import negative_log_likelihoods
    from psynth_jax.synthesis.pipeline import ParallelSynthesis

    synths = [ParallelSynthesis(model, adapter=adapter) for adapter in adapters]
    done = 0
    with activity(f"0 of {len(records)} records") as shown:

        def count(more: int) -> None:
            nonlocal done
            done += more
            shown.text = f"{done} of {len(records)} records"

        how = cast(Literal["branches", "text"], reads)
        return negative_log_likelihoods(synths, records, how, batch, count)


def _table(found: Mapping[str, TaskLikelihood]) -> NumberTable:
    compared = any(each.second is not None for each in found.values())
    heads = ["task", "records", "NLL a token [95%]"]
    if compared:
        heads += ["against [95%]", "difference [95%]"]
    table = NumberTable(tuple(heads))
    for task, each in found.items():
        cells = [task, str(each.records), _words(each.first)]
        if each.second is not None and each.difference is not None:
            cells += [_words(each.second), _words(each.difference, "+")]
        table.add_row(*cells)
    return table


def _words(interval: Interval, sign: str = "") -> str:
    value, low, high = (f"{each:{sign}.3f}" for each in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
