"""`psynth eval`: questions of a file or a benchmark, answered in several ways and scored."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psynth_jax.cli import adapter_choice
from psynth_jax.cli import eval_options as options
from psynth_jax.cli.checks import check_dtype, check_mesh
from psynth_jax.cli.eval_view import progress, table
from psynth_jax.cli.options import Dtype, MeshAxes, ModelName
from psynth_jax.cli.setting import activity, console, load, write_json
from psynth_jax.cli.template_option import TemplateOption, template_variables
from psynth_jax.errors import InputError

if TYPE_CHECKING:
    from psynth_jax.evaluation.lines import Shard
    from psynth_jax.evaluation.live import WorkerOptions
    from psynth_jax.evaluation.methods import Method, Synthesizers
    from psynth_jax.evaluation.tasks import Task
    from psynth_jax.model import Model
    from psynth_jax.synthesis.gate import Gate

METHODS = "text,branches"


def eval_(
    name: options.Name = None,
    data: options.Data = None,
    into: options.Into = None,
    methods: options.Methods = None,
    model: ModelName = "smollm2-135m",
    adapter: options.AdapterName = None,
    text_adapter: options.TextAdapter = None,
    limit: options.Limit = None,
    batch: options.Batch = 8,
    max_new_tokens: options.MaxNewTokens = None,
    final_answer: options.FinalAnswer = False,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    roles: options.Roles = None,
    worker_temperature: options.WorkerTemperature = None,
    worker_top_p: options.WorkerTopP = None,
    worker_max_new_tokens: options.WorkerMaxNewTokens = None,
    revision: options.Revision = None,
    answers: options.Answers = None,
    shard: options.ShardPart = None,
    gate: options.GateChoice = None,
    calibrate: options.Calibrate = False,
    dtype: Dtype = "float32",
    mesh: MeshAxes = None,
    template: TemplateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as one JSON object on stdout")] = False,
) -> None:
    """Answer questions in several ways: scores with intervals, time to first token, tokens."""
    from psynth_jax.evaluation.run import Plan, evaluate

    task = _task(name, data, into, final_answer=final_answer, revision=revision)
    of_workers: dict[str, Any] = {
        "workers": workers,
        "roles": roles,
        "worker_temperature": worker_temperature,
        "worker_top_p": worker_top_p,
        "worker_max_new_tokens": worker_max_new_tokens,
    }
    live, part = _live(name, of_workers, seed), _part(shard, into, calibrate=calibrate)
    if answers is not None:
        of_a_model: dict[str, Any] = {"methods": methods, "adapter": adapter, "text_adapter": text_adapter}
        of_a_model |= {"gate": gate, "calibrate": calibrate or None, "max_new_tokens": max_new_tokens, "mesh": mesh}
        _refuse_given(of_a_model | of_workers)
        _show(_score_given(task, answers, into, limit, seed, live, part), as_json=as_json)
        return
    gating = _gate(gate)
    chosen = _methods(methods or METHODS, adapter, text_adapter, gate, calibrate=calibrate)
    check_dtype(dtype)
    check_mesh(mesh)
    variables = template_variables(template)
    plan = Plan.of(task, chosen, limit, batch, max_new_tokens, temperature, seed, live, part)
    adapter_choice.check_adapter(text_adapter)
    if {method.weights for method in chosen} & {"adapter", "gated"}:
        adapter_choice.check_adapter(adapter)
    loaded = load(model, dtype, mesh)
    synths = _synthesizers(loaded, chosen, adapter, text_adapter, variables, gating, quiet=as_json)
    with _folder(into) as folder, progress(plan, [method.name for method in chosen]) as shown:
        summary = evaluate(plan, synths, folder, shown.row, shown.written, calibrate=calibrate)
    _show(summary, as_json=as_json)


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(summary)
    else:
        console.print(table(summary))


@contextlib.contextmanager
def _folder(into: str | None) -> Iterator[str]:
    """Give the folder of a run, or one that is gone afterwards."""
    if into:
        yield into
        return
    with tempfile.TemporaryDirectory(prefix="psynth-") as folder:
        yield folder


def _part(shard: str | None, into: str | None, *, calibrate: bool) -> Shard:
    """Return the part of the questions that is asked.  Raises `InputError` where nothing would be kept of it."""
    from psynth_jax.evaluation.lines import Shard

    for option, given in (("shard", shard is not None), ("calibrate", calibrate)):
        if given and not into:
            raise InputError(f"--{option} needs --into DIR: what it makes is kept there")
    return Shard() if shard is None else Shard.parse(shard)


def _score_given(
    task: Task, answers: str, into: str | None, limit: int | None, seed: int, live: WorkerOptions | None, part: Shard
) -> dict[str, Any]:
    """Score answers of a file without a model."""
    from psynth_jax.evaluation.given import score_given
    from psynth_jax.evaluation.plan import Plan

    plan = Plan.of(task, (), limit, seed=seed, workers=live, shard=part)
    with _folder(into) as folder, progress(plan, ["answers"]) as shown:
        return score_given(plan, answers, folder, shown.row)


def _refuse_given(given: Mapping[str, Any]) -> None:
    """Raise `InputError` naming an option that says how a model answers."""
    for option, value in given.items():
        if value is not None:
            name = option.replace("_", "-")
            raise InputError(f"--answers are scored without a model: leave --{name} out")


def _task(name: str | None, data: str | None, into: str | None, *, final_answer: bool, revision: str | None) -> Task:
    """Return the benchmark, or the file of records.  Raises `InputError` for options that do not go together."""
    if name is not None:
        from psynth_jax.evaluation.benchmarks.registry import benchmark

        if final_answer:
            raise InputError(f"--final-answer is for files of records; {name} says how its answers are read")
        return benchmark(name, data, revision)
    from psynth_jax.evaluation.tasks import QATask

    if data is None:
        raise InputError("name a benchmark, or give --data FILE with records")
    if not into:
        raise InputError("a file of records needs --into DIR for rows and summary")
    if revision is not None:
        raise InputError("--revision is of a benchmark's data on the hub, and no benchmark is named")
    return QATask(data, final_answer=final_answer)


def _live(name: str | None, given: dict[str, Any], seed: int) -> WorkerOptions | None:
    """Return how live workers write; None for a file whose records have branches."""
    from psynth_jax.evaluation.live import WorkerOptions
    from psynth_jax.prompts import load_roles

    said = {option.removeprefix("worker_"): value for option, value in given.items() if value is not None}
    if name is None:
        for option, value in given.items():
            if value is not None:
                raise InputError(f"--data holds branches, so that no worker writes: leave --{option.replace('_', '-')} out")
        return None
    if "roles" in said:
        said["roles"] = load_roles(None if said["roles"] == "default" else said["roles"])
    return WorkerOptions(**said, seed=seed)


def _gate(given: str | None) -> Gate | None:
    """Return a gate by its threshold or from its file."""
    from psynth_jax.synthesis.gate import Gate

    if given is None:
        return None
    try:
        threshold = float(given)
    except ValueError:
        return Gate.load(Path(given))
    return Gate(threshold)


def _methods(
    methods: str, adapter: str | None, text_adapter: str | None, gate: str | None, *, calibrate: bool
) -> tuple[Method, ...]:
    """Return methods by name.  Raises `InputError` where they do not go with the adapters, before a model is loaded."""
    from psynth_jax.evaluation.methods import Weights, choose

    names = [name.strip() for name in methods.split(",") if name.strip()]
    given: set[Weights] = set()
    if text_adapter is not None:
        given.add("text_adapter")
    if adapter != adapter_choice.NONE:  # where none is named, the shipped one may fit
        given.add("adapter")
        if gate is not None:
            given.add("gated")
    chosen = choose(names, given)
    used = {method.weights for method in chosen}
    if adapter not in (None, adapter_choice.NONE) and not used & {"adapter", "gated"}:
        raise InputError(f"--adapter and --methods {methods} contradict each other: no method reads with that adapter")
    if text_adapter is not None and "text_adapter" not in used:
        raise InputError(f"--text-adapter and --methods {methods} contradict each other: only text-lora takes it")
    if gate is not None and "gated" not in used:
        raise InputError(f"--gate and --methods {methods} contradict each other: only gated takes it")
    if calibrate and not {"text", "branches"} <= {method.name for method in chosen}:
        raise InputError(f"--calibrate weighs text against branches, and --methods {methods} lacks one of them")
    return chosen


def _synthesizers(
    model: Model,
    methods: Sequence[Method],
    adapter: str | None,
    text_adapter: str | None,
    variables: dict[str, Any] | None,
    gate: Gate | None,
    *,
    quiet: bool,
) -> Synthesizers:
    """Put adapters on the model.  Raises `InputError` when a method needs one and none is shipped for the model."""
    from psynth_jax.evaluation.methods import Synthesizers

    needing = [method.name for method in methods if method.weights in ("adapter", "gated")]
    found = adapter_choice.choose_adapter(adapter, model) if needing else None
    if needing and found is None:
        raise InputError(
            f"{', '.join(needing)} needs an adapter, and none is shipped for {model.name}: give --adapter, or leave the "
            "method out"
        )
    if needing and not quiet:
        adapter_choice.say_adapter(adapter, found, model)
    with activity("reading adapters"):
        return Synthesizers.over(model, found, text_adapter, variables, gate)
