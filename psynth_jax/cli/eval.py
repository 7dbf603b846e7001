"""`psynth eval`: questions of a file or a benchmark, answered in several ways and scored."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
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
    methods: options.Methods = METHODS,
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
    from psynth_jax.evaluation.given import score_given
    from psynth_jax.evaluation.lines import Shard
    from psynth_jax.evaluation.run import Plan, evaluate

    task = _task(name, data, into, final_answer=final_answer, revision=revision)
    of_workers = {
        "workers": workers,
        "roles": roles,
        "temperature": worker_temperature,
        "top_p": worker_top_p,
        "max_new_tokens": worker_max_new_tokens,
    }
    live = _live(name, of_workers, seed)
    part = Shard() if shard is None else Shard.parse(shard)
    chosen: Sequence[Method] = ()
    if answers is None:
        chosen = _methods(methods, adapter, text_adapter, gate, calibrate=calibrate)
    elif methods != METHODS or gate is not None or calibrate:
        raise InputError("--answers is scored without a model: leave --methods, --gate and --calibrate out")
    gating = _gate(gate)
    check_dtype(dtype)
    check_mesh(mesh)
    variables = template_variables(template)
    plan = Plan.of(task, chosen, limit, batch, max_new_tokens, temperature, seed, live, part)
    with contextlib.ExitStack() as kept:
        folder = into or kept.enter_context(tempfile.TemporaryDirectory(prefix="psynth-"))
        if answers is not None:
            with progress(plan, ["answers"]) as shown:
                summary = score_given(plan, answers, folder, shown.row)
        else:
            adapter_choice.check_adapter(text_adapter)
            if {method.weights for method in chosen} & {"adapter", "gated"}:
                adapter_choice.check_adapter(adapter)
            loaded = load(model, dtype, mesh)
            synths = _synthesizers(loaded, chosen, adapter, text_adapter, variables, gating, quiet=as_json)
            with progress(plan, [method.name for method in chosen]) as shown:
                summary = evaluate(plan, synths, folder, shown.row, shown.written, calibrate=calibrate)
    if as_json:
        write_json(summary)
        return
    console.print(table(summary))


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
    if into is None:
        raise InputError("a file of records needs --into DIR for rows and summary")
    if revision is not None:
        raise InputError("--revision is of a benchmark's data on the hub, and no benchmark is named")
    return QATask(data, final_answer=final_answer)


def _live(name: str | None, given: dict[str, Any], seed: int) -> WorkerOptions | None:
    """Return how live workers write; None for a file whose records have branches."""
    from psynth_jax.evaluation.live import WorkerOptions
    from psynth_jax.prompts import load_roles

    said = {option: value for option, value in given.items() if value is not None}
    if name is None:
        if said:
            option = next(iter(said)).replace("_", "-")
            raise InputError(f"--data holds branches, so that no worker writes: leave the workers' {option} out")
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
