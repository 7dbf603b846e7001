"""`psynth run`: a question, its workers, and an answer read from their caches."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from psynth_jax.cli import adapter_choice, view
from psynth_jax.cli.checks import check_at_least, check_choice, check_dtype, check_mesh, refuse_together, spelled, was_given
from psynth_jax.cli.options import CACHE_DTYPES, POSITIONS, AsJson, Dtype, MeshAxes, ModelName
from psynth_jax.cli.setting import activity, console, load, text_or_file, write_json
from psynth_jax.cli.template_option import TemplateOption, template_variables
from psynth_jax.errors import ContextLengthError, InputError
from psynth_jax.prompts import Role, load_roles, parse_roles, synthesis_messages, worker_prompts

if TYPE_CHECKING:
    from psynth_jax.branches import Branches
    from psynth_jax.synthesis.outputs import OnToken, StreamedToken
    from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult

WAYS = ("caches", "text", "question alone")  # what an answer is made from; the last two with --compare


def run(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="what to answer, @FILE, or - for standard input")],
    workers: Annotated[int, typer.Option(help="how many workers write, when no --branch is given")] = 3,
    branch: Annotated[
        list[str] | None, typer.Option(help="a branch given as TEXT, @FILE or -, instead of a worker; repeat it")
    ] = None,
    model: ModelName = "smollm2-135m",
    adapter: Annotated[str | None, typer.Option(help=adapter_choice.HELP)] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="answer from the texts, and from the question alone, too")
    ] = False,
    as_json: AsJson = False,
    roles: Annotated[str | None, typer.Option(help="YAML file of worker roles, each with name and text; - reads it")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 128,
    worker_tokens: Annotated[int, typer.Option(help="longest text of a worker, in tokens; it is cut off there")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="with --temperature; 1 is off")] = 1.0,
    top_k: Annotated[int, typer.Option(help="with --temperature; 0 is off")] = 0,
    seed: Annotated[int, typer.Option(help="of all random numbers; with --temperature")] = 0,
    positions: Annotated[str, typer.Option(help=POSITIONS)] = "exact",
    dtype: Dtype = "float32",
    cache_dtype: Annotated[
        str | None, typer.Option(help=f"of branch caches: {CACHE_DTYPES}; that of the model, if not given")
    ] = None,
    mesh: MeshAxes = None,
    template: TemplateOption = None,
) -> None:
    """Let workers answer QUESTION in parallel, and a synthesizer read their caches."""
    asked, given, chosen = _texts(question, branch or [], roles)
    _check(asked, given, workers, worker_tokens, positions, cache_dtype)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    _check_numbers(max_new_tokens, sampling, dtype, mesh)
    _check_together(context, temperature, positions)
    variables = template_variables(template)
    adapter_choice.check_adapter(adapter)
    loaded = load(model, dtype, mesh, one_answer=True)
    chosen_adapter = adapter_choice.choose_adapter(adapter, loaded)
    from psynth_jax.synthesis.pipeline import ParallelSynthesis

    with activity("reading the adapter"):
        synth = ParallelSynthesis(
            loaded,
            chosen_adapter,
            positions,  # type: ignore[arg-type]
            cache_dtype=cache_dtype,
            template=variables,
        )
    _check_window(synth, asked, 0, max_new_tokens)
    if given:
        names = [f"branch {number}" for number in range(1, len(given) + 1)]
        with activity("reading the given branches"):
            branches = synth.encode(given)
    else:
        chosen = tuple(chosen[index % len(chosen)] for index in range(workers))
        names = [role.name for role in chosen]
        branches = _work(synth, asked, chosen, worker_tokens, sampling)
    _check_window(synth, asked, max(branches.lengths), max_new_tokens)
    if not as_json:
        console.print(view.workers_panels(names, branches.texts, branches.lengths, branches.finish_reasons))
        adapter_choice.say_adapter(adapter, chosen_adapter, loaded)
    read = _written(branches)
    results = _answers(synth, asked, read, max_new_tokens, sampling, WAYS if compare else WAYS[:1], quiet=as_json)
    if as_json:
        write_json(
            _described(asked, names, branches, results)
            | {"adapter": None if chosen_adapter is None else str(chosen_adapter)}
            | ({"template": dict(synth.template)} if synth.template else {})
        )
        return
    if compare:
        console.print(view.answers(console, results))
    console.print(view.results_table(results))


def _texts(question: str, branch: Sequence[str], roles: str | None) -> tuple[str, list[str], tuple[Role, ...]]:
    """Read the question, the given branches and the roles.  Raises `InputError`, also when two want standard input."""
    wanting = [value for value in (question, *branch, roles) if value in ("-", "@-")]
    if len(wanting) > 1:
        raise InputError("only one of the question, the branches and --roles can be read from standard input")
    asked = text_or_file(question, "the question")
    given = [text_or_file(text, f"branch {number}") for number, text in enumerate(branch, start=1)]
    return asked, given, parse_roles(text_or_file("-", "the roles"), "standard input") if roles == "-" else load_roles(roles)


def _check_together(context: typer.Context, temperature: float, positions: str) -> None:
    """Raise `InputError` for options of which one would be ignored."""
    refuse_together(context, "branch", ("workers", "worker_tokens", "roles"), "given branches take the place of workers")
    if positions == "reference_live":
        refuse_together(context, "branch", ("positions",), "these positions need what stood before a worker's text")
    for name in ("top_p", "top_k"):
        if temperature == 0 and was_given(context, name):
            why = "has no effect at --temperature 0, which is greedy: give a temperature above 0"
            raise InputError(f"{spelled(name)} {why}")


def _check_numbers(max_new_tokens: int, sampling: dict[str, Any], dtype: str, mesh: str | None) -> None:
    from psynth_jax.synthesis.sampling import SamplingOptions, checked_seed

    SamplingOptions(max_new_tokens, sampling["temperature"], sampling["top_p"], sampling["top_k"])
    checked_seed(sampling["seed"])
    check_dtype(dtype)
    check_mesh(mesh)


def _check(
    question: str, given: Sequence[str], workers: int, worker_tokens: int, positions: str, cache_dtype: str | None
) -> None:
    """Raise `InputError` for what can be known to be wrong before a model is loaded."""
    if not question.strip():
        raise InputError("the question is empty")
    for number, text in enumerate(given, start=1):
        if not text.strip():
            raise InputError(f"branch {number} is empty")
    check_at_least(1, {"--workers": workers, "--worker-tokens": worker_tokens})
    if positions not in POSITIONS.split(" or "):
        raise InputError(f"--positions is {positions!r}; it must be {POSITIONS}")
    check_choice("--cache-dtype", cache_dtype, CACHE_DTYPES)


def _check_window(synth: ParallelSynthesis, question: str, branch_tokens: int, limit: int) -> None:
    """Raise `ContextLengthError` before anything is shown, or computed for nothing."""
    from psynth_jax.synthesis import inputs

    ids = inputs.prompt_ids(synth.model, question, "the question", synthesis_messages)
    inputs.check_window(synth.model, branch_tokens, len(ids), limit, "the question")


def _work(synth: ParallelSynthesis, question: str, roles: Sequence[Role], limit: int, sampling: dict[str, Any]) -> Branches:
    """Let one worker write per role, and show them as they do."""
    with (
        _said_elsewhere("workers write"),
        view.watch(console, [role.name for role in roles], synth.model.stop_ids, limit) as push,
    ):
        return synth.work(
            worker_prompts(question, roles, len(roles)),
            limit,
            on_token=lambda token: push(token.worker or 0, token),
            **sampling,
        )


@contextlib.contextmanager
def _said_elsewhere(text: str) -> Iterator[None]:
    """Say what is done where no panels show it."""
    with contextlib.nullcontext() if console.is_terminal else activity(text):
        yield


def _written(branches: Branches) -> Branches:
    """Leave out branches whose worker wrote nothing.  Raises `InputError` when none is left."""
    kept = [index for index, text in enumerate(branches.texts) if text.strip()]
    if not kept:
        raise InputError("no worker wrote anything: try other roles, or a temperature above 0")
    return branches if len(kept) == len(branches) else branches[kept]


def _answers(
    synth: ParallelSynthesis,
    question: str,
    branches: Branches,
    limit: int,
    sampling: dict[str, Any],
    ways: Sequence[str],
    *,
    quiet: bool,
) -> view.Answers:
    """Answer in every one of the ways; one that does not fit the context window gives the error that says so.

    The answer from the caches goes to stdout as it is written, unless `quiet`, or all answers are about to be seen side by
    side on the same terminal.
    """
    if len(ways) == 1:
        return {ways[0]: _stream(synth, question, branches, limit, sampling, quiet=quiet)}
    results: dict[str, Any] = {}
    on_screen = sys.stdout.isatty() and console.is_terminal
    titles = [f"from {way}" for way in ways]
    with _said_elsewhere("answering"), view.watch(console, titles, synth.model.stop_ids, limit) as push:
        for number, way in enumerate(ways):
            show = functools.partial(push, number)
            if way == "text":
                results[way] = _answer_from_text(synth, question, branches, limit, sampling, show)
            else:
                read = branches if way == "caches" else None
                results[way] = synth.synthesize(question, read, limit, on_token=show, **sampling)
    if not quiet and not on_screen:
        sys.stdout.write(results["caches"].text + "\n")
        sys.stdout.flush()
    return results


def _answer_from_text(
    synth: ParallelSynthesis, question: str, branches: Branches, limit: int, sampling: dict[str, Any], on_token: OnToken
) -> SynthesisResult | ContextLengthError:
    try:
        return synth.synthesize_text(question, branches.texts, limit, on_token=on_token, **sampling)
    except ContextLengthError as error:  # what branches are good for: together they are too long to be pasted
        return error


def _stream(
    synth: ParallelSynthesis, question: str, branches: Branches, limit: int, sampling: dict[str, Any], *, quiet: bool
) -> SynthesisResult:
    """Answer from the caches, writing to stdout: as it is to a file or a pipe, in lines that fit to a terminal."""
    if quiet:
        with activity("answering"):
            return synth.synthesize(question, branches, limit, **sampling)
    write = sys.stdout.write
    wrap = view.WordWrap(write, console.width) if sys.stdout.isatty() else None
    if wrap is not None:
        console.print(Text("answer", style="bold"))
    with activity("answering") as waiting:

        def on_token(token: StreamedToken) -> None:
            waiting.done()
            if wrap is None:
                write(token)
            else:
                wrap.push(token)
            sys.stdout.flush()

        result = synth.synthesize(question, branches, limit, on_token=on_token, **sampling)
    if wrap is not None:
        wrap.finish()
    write("\n")
    sys.stdout.flush()
    return result


def _described(question: str, names: list[str], branches: Branches, results: view.Answers) -> dict[str, Any]:
    rows = zip(names, branches.texts, branches.lengths, branches.finish_reasons, strict=True)
    described: dict[str, Any] = {
        "question": question,
        "workers": [
            {"role": role, "text": text, "tokens": tokens, "finish_reason": why} for role, text, tokens, why in rows
        ],
        **_numbers(results["caches"]),
    }
    return described | {way.replace(" ", "_"): _numbers(result) for way, result in results.items() if way != "caches"}


def _numbers(result: SynthesisResult | ContextLengthError) -> dict[str, Any]:
    if isinstance(result, ContextLengthError):
        return {"error": str(result)}
    return {
        "answer": result.text,
        "ttft_s": result.ttft_s,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "decode_tokens_per_s": result.decode_tokens_per_s,
        "finish_reason": result.finish_reason,
    }
