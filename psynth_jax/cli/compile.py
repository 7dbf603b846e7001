"""`psynth compile`: what a step needs and holds on a TPU slice, without having one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psynth_jax.cli import view
from psynth_jax.cli.checks import was_given
from psynth_jax.cli.options import PRESETS
from psynth_jax.cli.setting import activity, console, without_stderr, write_json
from psynth_jax.errors import InputError

if TYPE_CHECKING:
    from psynth_jax.compiling.report import Report
    from psynth_jax.compiling.workload import Workload

BEGIN, END = "<!-- psynth compile: begin -->", "<!-- psynth compile: end -->"


def compile_(
    context: typer.Context,
    topology: Annotated[str | None, typer.Option(help="accelerator type: v5e-16, v5p-64, v6e-8, tpu7x-16, ...")] = None,
    model: Annotated[str | None, typer.Option(help=PRESETS)] = None,
    program: Annotated[str, typer.Option(help="synthesize, decode, workers or train")] = "synthesize",
    mesh: Annotated[
        str | None,
        typer.Option(
            help="axes, as in branch=2,tensor=8; default: tensor as far as heads go, the rest branch (train: fsdp)"
        ),
    ] = None,
    branches: Annotated[int, typer.Option(help="branches that are read, or workers that decode")] = 16,
    branch_tokens: Annotated[int, typer.Option(help="tokens of each")] = 4096,
    prompt_tokens: Annotated[int, typer.Option(help="of the synthesizer's prompt, or of the one that workers share")] = 256,
    new_tokens: Annotated[int, typer.Option(help="room for the answer; of the target of train")] = 128,
    questions: Annotated[int, typer.Option(help="of a batch of train")] = 1,
    dtype: Annotated[str, typer.Option(help="of weights and activations: bfloat16 or float32")] = "bfloat16",
    cache_dtype: Annotated[str | None, typer.Option(help="of the pool of caches, int8 too; default: dtype")] = None,
    rank: Annotated[int, typer.Option(help="of the synthesizer's adapter, on q, k, v, o; 0: none, as for workers")] = 16,
    matrix: Annotated[
        Path | None, typer.Option(help="YAML list of workloads, compiled one after another; - reads it")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help=f"with --matrix: a file whose table between {BEGIN} and {END} is renewed")
    ] = None,
    dump: Annotated[Path | None, typer.Option(help="write the compiled text to this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Compile a step for a TPU slice: does it fit, what does it copy and send, how fast could it be?

    Exit code 1 when something does not fit.
    """
    import jax

    from psynth_jax.compiling.workload import read_matrix, workload

    if "JAX_PLATFORMS" not in os.environ:  # what is compiled for needs no device here, and must not take one
        jax.config.update("jax_platforms", "cpu")
    if matrix is not None:
        given = [name for name in context.params if was_given(context, name) and name not in ("matrix", "into", "as_json")]
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"a --matrix says itself what to compile, and writes no text: leave out {named}")
        _matrix(read_matrix(matrix), matrix, into, as_json)
        return
    if into is not None:
        raise InputError("--into takes the table of a --matrix")
    if topology is None or model is None:
        raise InputError("--topology and --model are needed, such as --topology v5e-16 --model qwen3-14b, or a --matrix")
    _refuse_ignored(context, program, rank)
    asked = {
        "topology": topology, "model": model, "program": program, "mesh": mesh, "branches": branches,
        "branch_tokens": branch_tokens, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "dtype": dtype,
        "questions": questions,
        "cache_dtype": cache_dtype, "rank": rank,
    }  # fmt: skip
    found = _compile(workload(asked))
    if dump is not None and found.text is not None:
        _write(dump, found.text)
    if as_json:
        write_json(found.facts)
    else:
        console.print(view.compiled(found.facts))
        if dump is not None and found.text is None:
            console.print(f"nothing was written to {dump}: there is no compiled text")
    if not found.facts["ok"]:
        raise SystemExit(1)


def _refuse_ignored(context: typer.Context, program: str, rank: int) -> None:
    """Raise `InputError` for an option that the program does not have."""
    ignored = {"questions"} if program != "train" else {"cache_dtype"}
    if program == "workers":
        ignored |= {"new_tokens"} | ({"rank"} if rank else set())
    for name in sorted(ignored):
        if was_given(context, name):
            spelled = "--" + name.replace("_", "-")
            raise InputError(f"{spelled} and --program {program} contradict each other: that program has none; leave it out")


def _compile(work: Workload) -> Report:
    from psynth_jax.compiling.report import report

    with activity(f"compiling {work.program} of {work.model} for {work.topology}"), without_stderr():
        return report(work)


def _matrix(workloads: list[Workload], source: Path, into: Path | None, as_json: bool) -> None:
    from psynth_jax.compiling.report import markdown

    before, after = _around(into) if into is not None else ("", "")
    facts: list[dict[str, Any]] = []
    for work in workloads:
        facts.append(_compile(work).facts)
        if not as_json:
            console.print(view.compiled_line(facts[-1]))
    table = markdown(facts)
    if into is not None:
        _write(into, f"{before}{BEGIN}\n{table}\n{END}{after}")
    ok = all(each["ok"] for each in facts)
    if as_json:
        write_json({"ok": ok, "matrix": str(source), "reports": facts})
    elif into is None:
        typer.echo(table)
    if not ok:
        raise SystemExit(1)


def _around(path: Path) -> tuple[str, str]:
    """Return what is before and after the lines of the table.  Raises `InputError` for a file without them."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{path} has no lines {BEGIN} and {END}")
    return before, after


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
