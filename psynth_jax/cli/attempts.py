"""`psynth data attempts`: let workers write about the questions of a file, and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from psynth_jax.cli.checks import check_at_least, check_dtype, check_mesh
from psynth_jax.cli.data_progress import progress
from psynth_jax.cli.options import AsJson, Dtype, MeshAxes, ModelName
from psynth_jax.cli.setting import console, load, write_json
from psynth_jax.cli.template_option import TemplateOption, template_variables
from psynth_jax.cli.view import printable
from psynth_jax.data.counts import counted
from psynth_jax.errors import InputError
from psynth_jax.prompts import Role, load_roles


def attempts(
    questions: Annotated[
        str,
        typer.Argument(help="rows with question and answer: .jsonl or .jsonl.gz, or - for stdin"),
    ],
    into: Annotated[
        str,
        typer.Option(help="file of JSON lines; questions in it are not asked again"),
    ],
    model: ModelName = "smollm2-135m",
    workers: Annotated[int, typer.Option(help="attempts at each question")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="longest attempt, in tokens")] = 192,
    temperature: Annotated[
        float,
        typer.Option(help="0 is greedy, and needs a role for each worker"),
    ] = 0.7,
    roles: Annotated[
        str | None,
        typer.Option(help="YAML file of worker roles; default: all work it out step by step"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="only the first so many questions")] = None,
    batch: Annotated[int, typer.Option(help="questions that are worked on at once")] = 8,
    seed: Annotated[int, typer.Option(help="of all random numbers")] = 0,
    dtype: Dtype = "float32",
    mesh: MeshAxes = None,
    template: TemplateOption = None,
    as_json: AsJson = False,
) -> None:
    """Let a model attempt every question several times, for `psynth data prepare attempts`."""
    from psynth_jax.data.sources import read_rows
    from psynth_jax.synthesis.attempts import AttemptFile, AttemptOptions, asked_of, write_attempts
    from psynth_jax.synthesis.pipeline import ParallelSynthesis
    from psynth_jax.synthesis.sampling import SamplingOptions, checked_seed

    check_at_least(1, {"--workers": workers, "--batch": batch})
    if limit is not None:
        check_at_least(1, {"--limit": limit})
    SamplingOptions(max_new_tokens, temperature)
    checked_seed(seed)
    check_dtype(dtype)
    check_mesh(mesh)
    variables = template_variables(template)
    chosen = _roles(roles)
    if temperature == 0 and len(chosen) < workers:
        why = f"{workers} workers need {workers} roles to differ, got {len(chosen)}"
        raise InputError(f"at --temperature 0 {why}")
    options = AttemptOptions(chosen, workers, max_new_tokens, temperature, seed, batch)
    asked = asked_of(read_rows(questions))[:limit]
    file = AttemptFile(Path(into), options.made(model))
    synth = ParallelSynthesis(load(model, dtype, mesh), template=variables)
    with progress(console, len(asked)) as stage:

        def tell(done: int) -> None:
            stage.says(f"{done:,} of {counted(len(asked), 'question')} attempted", done)

        tell(sum(each.question in file.done for each in asked))
        new = write_attempts(synth, asked, file, options, tell)
    facts: dict[str, Any] = {"questions": len(asked), "new": new, "into": into, "model": model}
    if as_json:
        write_json(facts)
        return
    said = f"{into}: attempts at {counted(len(asked), 'question')}, {new:,} of them new"
    console.print(Text(printable(said)), soft_wrap=True)


def _roles(file: str | None) -> tuple[Role, ...]:
    """Read the roles; without a file, the one that solves."""
    if file is None:
        return load_roles()[:1]
    return load_roles(file)
