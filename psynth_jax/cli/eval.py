"""`psynth eval`: a file of questions, answered in several ways and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from psynth_jax.cli.setting import console, load, write_json
from psynth_jax.cli.template_option import TemplateOption, template_variables
from psynth_jax.convert.rules import parameter_dtype
from psynth_jax.evaluation.methods import METHODS, Synthesizers, Weights, choose
from psynth_jax.evaluation.run import OnRow, Plan, evaluate
from psynth_jax.evaluation.tasks import QATask


def eval_(
    data: Annotated[str, typer.Option(help="file of records with answers: .jsonl or .jsonl.gz")],
    into: Annotated[str, typer.Option(help="folder for rows and summary; rows that are there are not run again")],
    methods: Annotated[str, typer.Option(help=f"some of {', '.join(METHODS)}, with commas between")] = "text,branches",
    model: Annotated[str, typer.Option(help="preset, model directory, .gguf file, or hub id")] = "smollm2-135m",
    adapter: Annotated[str | None, typer.Option(help="adapter (directory or hub id), for what reads branches")] = None,
    text_adapter: Annotated[
        str | None,
        typer.Option(help="adapter (directory or hub id): a LoRA that was trained on pasted texts, for text-lora"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="ask the first so many questions only")] = None,
    batch: Annotated[int, typer.Option(help="questions that are answered at once; 1 for the TTFT of a question alone")] = 8,
    max_new_tokens: Annotated[int | None, typer.Option(help="longest answer, in tokens; 32, if not given")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the bootstrap, and of sampling")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    mesh: Annotated[str | None, typer.Option(help="devices to run on, as in branch=2,tensor=2; default: one")] = None,
    template: TemplateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as one JSON object on stdout")] = False,
) -> None:
    """Answer the questions of a file in several ways: EM, F1, time to first token, tokens."""
    adapters: dict[Weights, str | None] = {"adapter": adapter, "text_adapter": text_adapter}
    names = [name.strip() for name in methods.split(",") if name.strip()]
    chosen = choose(names, {kind for kind, given in adapters.items() if given is not None})
    parameter_dtype(dtype)
    variables = template_variables(template)
    plan = Plan.of(QATask(data), chosen, limit, batch, max_new_tokens, temperature, seed)
    synthesizers = Synthesizers.over(load(model, dtype, mesh), adapter, text_adapter, variables)
    with _progress(plan) as on_row:
        summary = evaluate(plan, synthesizers, into, on_row)
    if as_json:
        write_json(summary)
        return
    console.print(_table(summary))


@contextmanager
def _progress(plan: Plan) -> Iterator[OnRow]:
    """Show a bar per method on a terminal, and nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars = {method.name: progress.add_task(method.name, total=len(plan.questions)) for method in plan.methods}
        yield lambda row: progress.advance(bars[row["method"]])


def _table(summary: Mapping[str, Any]) -> Group:
    """Show what every method reached, then what it took, and say how both were measured."""
    methods = summary["methods"]
    scores = [name for name, value in next(iter(methods.values())).items() if isinstance(value, dict)]
    reached = _columns("method", *(f"{name.upper()} [95%]" for name in scores), "cut off", "does not fit")
    took = _columns("method", "TTFT", "tokens prefilled", "read from caches", "answer tokens")
    for name, found in methods.items():
        reached.add_row(name, *(_percent(found[score]) for score in scores), *_counts(found, "cut_off", "does_not_fit"))
        ttft = "-" if found["ttft_s"] is None else f"{found['ttft_s']:.3f} s"
        took.add_row(name, ttft, *_counts(found, "prompt_tokens", "cached_tokens", "generated_tokens"))
    notes = [
        f"{summary['questions']:,} questions.  Scores in percent, with bootstrap intervals; what does not fit scores 0.",
        *(_ratio(each) for each in summary["comparisons"] if each["score"] == scores[-1] and each["ratio"] is not None),
        _ttft_note(summary["batch"]) + "  Tokens: means.",
    ]
    return Group(reached, took, *(Text(note, style="dim") for note in notes))


def _columns(*heads: str) -> Table:
    table = Table(box=box.ROUNDED, border_style="dim")
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if number else "left")
    return table


def _counts(found: Mapping[str, Any], *names: str) -> list[str]:
    return ["-" if found[name] is None else f"{found[name]:,.0f}" for name in names]


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _ttft_note(batch: int) -> str:
    of = "a question" if batch == 1 else f"a batch of up to {batch} (--batch 1: of a question)"
    return f"TTFT: median, from branches ready to the first token of {of}."


def _ratio(compared: Mapping[str, Any]) -> str:
    ratio, name = compared["ratio"], compared["score"].upper()
    return (
        f"{name} of {compared['method']} is {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times "
        f"that of {compared['against']}."
    )
