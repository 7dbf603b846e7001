"""`psynth run`: a question, its workers, and an answer read from their caches."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from psynth_jax.branches import Branches
from psynth_jax.cli import view
from psynth_jax.cli.setting import console, load, text_or_file, write_json
from psynth_jax.errors import InputError
from psynth_jax.synthesis.generate import StreamedToken
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
from psynth_jax.synthesis.prompts import load_roles, worker_prompts


def run(
    question: Annotated[str, typer.Argument(help="what to answer, or @FILE")],
    workers: Annotated[int, typer.Option(help="how many workers write, when no --branch is given")] = 3,
    branch: Annotated[
        list[str] | None, typer.Option(help="a branch given as TEXT or @FILE, instead of a worker; repeat it")
    ] = None,
    model: Annotated[str, typer.Option(help="preset, model directory, .gguf file, or hub id")] = "smollm2-135m",
    adapter: Annotated[str | None, typer.Option(help="adapter directory for the synthesizer")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="answer from the texts, and from the question alone, too")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
    roles: Annotated[str | None, typer.Option(help="YAML file of worker roles")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 128,
    worker_tokens: Annotated[int, typer.Option(help="longest text of a worker, in tokens")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="1 is off")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off")] = 0,
    seed: Annotated[int, typer.Option(help="of all random numbers")] = 0,
    positions: Annotated[str, typer.Option(help="exact or reference_live")] = "exact",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
) -> None:
    """Let workers answer QUESTION in parallel, and a synthesizer read their caches."""
    asked = text_or_file(question)
    texts = [text_or_file(text) for text in branch or []]
    if not asked.strip():
        raise InputError("the question is empty")
    if not texts and workers < 1:
        raise InputError(f"--workers is {workers}; at least 1 is needed")
    chosen = load_roles(roles)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    synth = ParallelSynthesis(load(model, dtype), adapter, positions)  # type: ignore[arg-type]  # checked there
    if texts:
        names = [f"branch {index + 1}" for index in range(len(texts))]
        branches = synth.encode(texts)
    else:
        names = [chosen[index % len(chosen)].name for index in range(workers)]
        with view.watch_workers(console, names) as on_token:
            branches = synth.work(worker_prompts(asked, chosen, workers), worker_tokens, on_token=on_token, **sampling)
    if not as_json:
        console.print(view.workers_table(names, branches.texts, branches.lengths, branches.finish_reasons))
    results = _answers(synth, asked, branches, max_new_tokens, sampling, compare=compare, stream=not as_json)
    if as_json:
        write_json(_described(asked, names, branches, results))
        return
    if compare:
        console.print(view.answers(results))
    console.print(view.results_table(results))


def _answers(
    synth: ParallelSynthesis,
    question: str,
    branches: Branches,
    limit: int,
    sampling: dict[str, Any],
    *,
    compare: bool,
    stream: bool,
) -> dict[str, SynthesisResult]:
    """Answer from the caches, streaming to stdout, and with `compare` from the texts and from nothing."""

    def write(token: StreamedToken) -> None:
        sys.stdout.write(token)
        sys.stdout.flush()

    results = {"caches": synth.synthesize(question, branches, limit, on_token=write if stream else None, **sampling)}
    if stream:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if compare:
        with console.status("answering from the texts, and from the question alone"):
            results["text"] = synth.synthesize_text(question, branches.texts, limit, **sampling)
            results["question alone"] = synth.synthesize(question, None, limit, **sampling)
    return results


def _described(question: str, names: list[str], branches: Branches, results: dict[str, SynthesisResult]) -> dict[str, Any]:
    def of(result: SynthesisResult) -> dict[str, Any]:
        return {
            "answer": result.text,
            "ttft_s": result.ttft_s,
            "prompt_tokens": result.prompt_tokens,
            "cached_tokens": result.cached_tokens,
            "decode_tokens_per_s": result.decode_tokens_per_s,
            "finish_reason": result.finish_reason,
        }

    rows = zip(names, branches.texts, branches.lengths, branches.finish_reasons, strict=True)
    described: dict[str, Any] = {
        "question": question,
        "workers": [
            {"role": role, "text": text, "tokens": tokens, "finish_reason": why} for role, text, tokens, why in rows
        ],
        **of(results["caches"]),
    }
    if "text" in results:
        described["text"] = of(results["text"])
        described["question_alone"] = of(results["question alone"])
    return described
