"""`psynth eval`: a file of questions, answered in several ways and scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from psynth_jax.cli import adapter_choice
from psynth_jax.cli.checks import check_dtype, check_mesh
from psynth_jax.cli.options import METHODS, Dtype, MeshAxes, ModelName
from psynth_jax.cli.setting import activity, console, load, write_json
from psynth_jax.cli.tables import NumberTable
from psynth_jax.cli.template_option import TemplateOption, template_variables
from psynth_jax.data.counts import counted
from psynth_jax.errors import InputError

if TYPE_CHECKING:
    from psynth_jax.evaluation.methods import Method, Synthesizers
    from psynth_jax.evaluation.run import OnRow, Plan
    from psynth_jax.model import Model


def eval_(
    data: Annotated[str, typer.Option(help="file of records with answers: .jsonl or .jsonl.gz, or - for stdin")],
    into: Annotated[str, typer.Option(help="folder for rows and summary; rows that are there are not run again")],
    methods: Annotated[str, typer.Option(help=f"some of {METHODS}, with commas between")] = "text,branches",
    model: ModelName = "smollm2-135m",
    adapter: Annotated[str | None, typer.Option(help=adapter_choice.HELP)] = None,
    text_adapter: Annotated[
        str | None,
        typer.Option(help="adapter (directory or hub id): a LoRA that was trained on pasted texts, for text-lora"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="ask the first so many questions only")] = None,
    batch: Annotated[int, typer.Option(help="questions that are answered at once; 1 for the TTFT of a question alone")] = 8,
    max_new_tokens: Annotated[int | None, typer.Option(help="longest answer, in tokens; 32, if not given")] = None,
    final_answer: Annotated[
        bool, typer.Option("--final-answer", help="score only what stands behind the last `Answer:` in what is written")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the bootstrap, and of sampling")] = 0,
    dtype: Dtype = "float32",
    mesh: MeshAxes = None,
    template: TemplateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as one JSON object on stdout")] = False,
) -> None:
    """Answer the questions of a file in several ways: EM, F1, time to first token, tokens."""
    from psynth_jax.evaluation.run import Plan, evaluate
    from psynth_jax.evaluation.tasks import QATask

    chosen = _methods(methods, adapter, text_adapter)
    check_dtype(dtype)
    check_mesh(mesh)
    variables = template_variables(template)
    plan = Plan.of(QATask(data, final_answer=final_answer), chosen, limit, batch, max_new_tokens, temperature, seed)
    if "adapter" in {method.weights for method in chosen}:
        adapter_choice.check_adapter(adapter)
    adapter_choice.check_adapter(text_adapter)
    loaded = load(model, dtype, mesh)
    synthesizers = _synthesizers(loaded, chosen, adapter, text_adapter, variables, quiet=as_json)
    with _progress(plan) as on_row:
        summary = evaluate(plan, synthesizers, into, on_row)
    if as_json:
        write_json(summary)
        return
    console.print(_table(summary))


def _methods(methods: str, adapter: str | None, text_adapter: str | None) -> tuple[Method, ...]:
    """Return methods by name.  Raises `InputError` where they do not go with the adapters, before a model is loaded."""
    from psynth_jax.evaluation.methods import Weights, choose

    names = [name.strip() for name in methods.split(",") if name.strip()]
    given: set[Weights] = {"text_adapter"} if text_adapter is not None else set()
    if adapter != adapter_choice.NONE:  # where none is named, the shipped one may fit
        given.add("adapter")
    chosen = choose(names, given)
    used = {method.weights for method in chosen}
    if adapter not in (None, adapter_choice.NONE) and "adapter" not in used:
        raise InputError(f"--adapter and --methods {methods} contradict each other: no method reads with that adapter")
    if text_adapter is not None and "text_adapter" not in used:
        raise InputError(f"--text-adapter and --methods {methods} contradict each other: only text-lora takes it")
    return chosen


def _synthesizers(
    model: Model,
    methods: Sequence[Method],
    adapter: str | None,
    text_adapter: str | None,
    variables: dict[str, Any] | None,
    *,
    quiet: bool,
) -> Synthesizers:
    """Put adapters on the model.  Raises `InputError` when a method needs one and none is shipped for the model."""
    from psynth_jax.evaluation.methods import Synthesizers

    needing = [method.name for method in methods if method.weights == "adapter"]
    found = adapter_choice.choose_adapter(adapter, model) if needing else None
    if needing and found is None:
        raise InputError(
            f"{', '.join(needing)} needs an adapter, and none is shipped for {model.name}: give --adapter, or leave the "
            "method out"
        )
    if needing and not quiet:
        adapter_choice.say_adapter(adapter, found, model)
    with activity("reading adapters"):
        return Synthesizers.over(model, found, text_adapter, variables)


@contextmanager
def _progress(plan: Plan) -> Iterator[OnRow]:
    """Show a bar per method on a terminal, and a line now and then elsewhere."""
    if not console.is_terminal:
        total, done = len(plan.questions) * len(plan.methods), Counter[str]()
        with activity(f"0 of {total} answers") as shown:

            def count(row: Mapping[str, Any]) -> None:
                done[row["method"]] += 1
                shown.text = f"{done.total()} of {total} answers, now {row['method']}"

            yield count
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bars = {method.name: progress.add_task(method.name, total=len(plan.questions)) for method in plan.methods}
        yield lambda row: progress.advance(bars[row["method"]])


def _table(summary: Mapping[str, Any]) -> Group:
    """Show what every method reached, then what it took, and say how both were measured."""
    methods = summary["methods"]
    scores = [name for name, value in next(iter(methods.values())).items() if isinstance(value, dict)]
    reached = NumberTable(("method", *(f"{name.upper()} [95%]" for name in scores), "cut off", "does not fit"))
    took = NumberTable(("method", "TTFT", "tokens prefilled", "read from caches", "answer tokens"))
    for name, found in methods.items():
        reached.add_row(name, *(_percent(found[score]) for score in scores), *_counts(found, "cut_off", "does_not_fit"))
        ttft = "-" if found["ttft_s"] is None else f"{found['ttft_s']:.3f} s"
        took.add_row(name, ttft, *_counts(found, "prompt_tokens", "cached_tokens", "generated_tokens"))
    notes = [
        counted(summary["questions"], "question")
        + ".  Scores in percent, with bootstrap intervals; what does not fit scores 0.",
        *(_ratio(each) for each in summary["comparisons"] if each["score"] == scores[-1] and each["ratio"] is not None),
        _ttft_note(summary["batch"]) + "  Tokens: means.",
        *_no_time_note(methods),
    ]
    return Group(reached, took, *(Text(note, style="dim") for note in notes))


def _counts(found: Mapping[str, Any], *names: str) -> list[str]:
    return ["-" if found[name] is None else f"{found[name]:,.0f}" for name in names]


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _ttft_note(batch: int) -> str:
    of = "a question" if batch == 1 else f"a batch of up to {batch} (--batch 1: of a question)"
    return f"TTFT: median, from branches ready to the first token of {of}."


def _no_time_note(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of a method that asks no model why it has no time; one that fits no question has no tokens either."""
    notes = []
    for name, found in methods.items():
        if found["ttft_s"] is None and found["prompt_tokens"] == 0:
            notes.append(f"{name} asks no model: it has no TTFT.")
    return notes


def _ratio(compared: Mapping[str, Any]) -> str:
    ratio, name = compared["ratio"], compared["score"].upper()
    return (
        f"{name} of {compared['method']} is {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times "
        f"that of {compared['against']}."
    )
