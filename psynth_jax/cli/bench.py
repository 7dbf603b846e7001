"""`psynth bench`: what is fast, measured where it runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psynth_jax.cli import view
from psynth_jax.cli.checks import check_at_least, check_choice, check_dtype, check_mesh
from psynth_jax.cli.options import (
    ATTENTION_SHAPES,
    CACHE_DTYPES,
    IMPLEMENTATIONS,
    LAYERS,
    AsJson,
    Dtype,
    MeshAxes,
    ModelName,
)
from psynth_jax.cli.setting import activity, console, device_name, start_jax, write_json
from psynth_jax.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from psynth_jax.bench.question import Question
    from psynth_jax.config import DecoderConfig
    from psynth_jax.model import Model

bench = typer.Typer(help="Measure speed, and what lower precision costs.")

Attention = Annotated[str, typer.Option("--implementation", help=f"of attention: {IMPLEMENTATIONS}")]
TINY = "tiny-random"  # the model that is drawn, see `psynth_jax.convert.tiny`
Random = Annotated[bool, typer.Option("--random", help="random weights of the preset's shape: nothing is downloaded")]
Repeats = Annotated[int, typer.Option(help="measured runs of each kind, in turn; medians are reported")]
Layers = Annotated[str, typer.Option(help=f"of the model in memory: {LAYERS}")]
Against = Annotated[str | None, typer.Option(help="'torch': also time transformers, on the same weights or on random ones")]


@bench.command()
def ttft(
    model: ModelName = "smollm2-135m",
    branches: Annotated[int, typer.Option(help="how many branches are ready")] = 4,
    branch_tokens: Annotated[int, typer.Option(help="tokens of each")] = 512,
    prompt_tokens: Annotated[int, typer.Option(help="tokens of the synthesizer's prompt")] = 64,
    repeats: Repeats = 5,
    dtype: Dtype = "float32",
    random: Random = False,
    against: Against = None,
    mesh: MeshAxes = None,
    layers: Layers = "auto",
    as_json: AsJson = False,
) -> None:
    """Time to first token from branches, against prefilling the same tokens as text, and the device's floor.

    With `--against torch` also torch's prefill of the same tokens, and the published way to read branches in
    torch: rotate, map, concatenate, prefill the prompt.  Where torch has a GPU, it runs first, in a process of
    its own, so that one model at a time is in memory.
    """
    sizes = {"--branches": branches, "--branch-tokens": branch_tokens, "--prompt-tokens": prompt_tokens}
    check_at_least(1, sizes | {"--repeats": repeats})
    _check_model(dtype, mesh)
    check_choice("--layers", layers, LAYERS)
    against_torch = _wants_torch(against, random)
    from psynth_jax.bench.question import Question
    from psynth_jax.bench.ttft import ttft as measure_ttft

    question = Question(branches, branch_tokens, prompt_tokens)
    source = _torch_source(model, random)
    apart = _torch_apart(source, dtype, question, repeats) if against_torch else None
    loaded = _model(model, dtype, random, mesh, layers)

    def torch_routes() -> Mapping[str, Callable[[], float]]:
        from psynth_jax.bench import torch_process

        return torch_process.routes(source, str(loaded.decoder.dtype), question)

    in_turn = torch_routes if against_torch and apart is None else None
    with activity("measuring the time to the first token"):
        found = measure_ttft(loaded, question, repeats, torch_routes=in_turn, torch_seconds=apart)
    _report("ttft", model, dtype, random, mesh, found, as_json)


@bench.command()
def decode(
    model: ModelName = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="rows that decode as one batch")] = 4,
    new_tokens: Annotated[int, typer.Option(help="tokens that each row decodes")] = 64,
    prompt_tokens: Annotated[int, typer.Option(help="tokens of each row's prompt")] = 64,
    prefill_tokens: Annotated[int, typer.Option(help="tokens of the prefill that is timed by itself")] = 1024,
    repeats: Repeats = 5,
    dtype: Dtype = "float32",
    random: Random = False,
    against: Against = None,
    mesh: MeshAxes = None,
    layers: Layers = "auto",
    as_json: AsJson = False,
) -> None:
    """Prefill, decoding of several rows, and workers in one batch against one after another."""
    sizes = {"--rows": rows, "--prompt-tokens": prompt_tokens, "--prefill-tokens": prefill_tokens}
    check_at_least(1, sizes | {"--repeats": repeats})
    if new_tokens < 2:
        raise InputError(f"--new-tokens is {new_tokens}: what is timed follows the first token, so new tokens at least 2")
    _check_model(dtype, mesh)
    check_choice("--layers", layers, LAYERS)
    against_torch = _wants_torch(against, random)
    from psynth_jax.bench.decode import decode as measure_decode

    loaded = _model(model, dtype, random, mesh, layers)
    with activity("measuring prefill and decoding"):
        source = _torch_source(model, random)
        found = measure_decode(
            loaded, source, rows, new_tokens, prompt_tokens, prefill_tokens, repeats, against_torch=against_torch
        )
    _report("decode", model, dtype, random, mesh, found, as_json)


@bench.command()
def requests(
    model: ModelName = "smollm2-135m",
    clients: Annotated[int, typer.Option(help="clients that ask at the same time")] = 32,
    dtype: Dtype = "float32",
    random: Random = False,
    mesh: MeshAxes = None,
    layers: Layers = "auto",
    as_json: AsJson = False,
) -> None:
    """Let many clients ask at once: tokens a second of all of them against one, and times between tokens.

    Ten requests of different shapes come first, one after the other: after all programs are
    compiled, they compile none.
    """
    check_at_least(1, {"--clients": clients})
    _check_model(dtype, mesh)
    check_choice("--layers", layers, LAYERS)
    from psynth_jax.bench.requests import requests as measure_requests

    loaded = _model(model, dtype, random, mesh, layers)
    with activity("measuring requests") as shown:

        def say(text: str) -> None:
            shown.text = f"measuring requests: {text}"

        found = measure_requests(loaded, clients, say)
    _report("requests", model, dtype, random, mesh, found, as_json)


@bench.command()
def kernel(
    model: Annotated[str, typer.Option(help=f"whose attention: {ATTENTION_SHAPES}")] = "qwen3-8b",
    tokens: Annotated[int, typer.Option(help="new tokens: 1 is decoding")] = 1,
    branches: Annotated[int, typer.Option(help="branches that are read")] = 8,
    branch_tokens: Annotated[int, typer.Option(help="tokens of each")] = 4096,
    rows: Annotated[int, typer.Option(help="questions in the batch")] = 1,
    dtype: Dtype = "float32",
    cache_dtype: Annotated[str | None, typer.Option(help=f"of the branches: {CACHE_DTYPES}")] = None,
    implementation: Attention = "auto",
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """One attention call of a model's shape, against the device's measured bandwidth and matmul rate."""
    check_dtype(dtype)
    check_choice("--cache-dtype", cache_dtype, CACHE_DTYPES)
    check_choice("--implementation", implementation, IMPLEMENTATIONS)
    from psynth_jax.bench.kernel import kernel as measure_kernel
    from psynth_jax.ops.branch_attention.cases import Case

    case = Case(model, tokens, branches, branch_tokens, rows=rows)
    with activity(f"measuring {case.name}"):
        start_jax()
        found = measure_kernel(case, dtype, cache_dtype or dtype, implementation, repeats)  # type: ignore[arg-type]
    _report("kernel", model, dtype, True, None, found, as_json)


@bench.command()
def error(
    model: ModelName = "smollm2-135m",
    workers: Annotated[int, typer.Option(help="workers that write, with a role each")] = 3,
    worker_tokens: Annotated[int, typer.Option(help="tokens that each of them writes")] = 128,
    answer_tokens: Annotated[int, typer.Option(help="tokens of the answer that is scored")] = 64,
    random: Random = False,
    mesh: MeshAxes = None,
    as_json: AsJson = False,
) -> None:
    """Error of bfloat16 and of int8 caches: log-probabilities of an answer, against float32."""
    check_at_least(1, {"--workers": workers, "--worker-tokens": worker_tokens, "--answer-tokens": answer_tokens})
    _check_model("float32", mesh)
    from psynth_jax.bench.error import error as measure_error

    with activity("comparing numbers") as shown:

        def loaded(dtype: str) -> Model:
            made = _made(model, dtype, random, mesh, "auto")
            shown.text = f"comparing numbers in {dtype}"
            return made

        found = measure_error(loaded, workers, worker_tokens, answer_tokens)
    _report("error", model, "float32", random, mesh, found, as_json)


@bench.command()
def train(
    model: ModelName = "smollm2-135m",
    examples: Annotated[int, typer.Option(help="examples of a batch")] = 4,
    branches: Annotated[int, typer.Option(help="branches of each")] = 4,
    branch_tokens: Annotated[int, typer.Option(help="tokens of the longest branch; the shortest has half of them")] = 192,
    prompt_tokens: Annotated[int, typer.Option(help="of the longest prompt")] = 48,
    target_tokens: Annotated[int, typer.Option(help="of the longest target")] = 32,
    remat: Annotated[bool, typer.Option(help="compute layers anew in the backward pass instead of keeping them")] = False,
    implementation: Attention = "auto",
    repeats: Repeats = 5,
    dtype: Dtype = "float32",
    random: Random = False,
    against: Against = None,
    mesh: MeshAxes = None,
    as_json: AsJson = False,
) -> None:
    """Training steps on one batch, and reading of data; against two loops in torch and PEFT."""
    sizes = {"--examples": examples, "--branches": branches, "--branch-tokens": branch_tokens}
    sizes |= {"--prompt-tokens": prompt_tokens, "--target-tokens": target_tokens, "--repeats": repeats}
    check_at_least(1, sizes)
    check_choice("--implementation", implementation, IMPLEMENTATIONS)
    _check_model(dtype, mesh)
    if against == "torch" and random:
        raise InputError("--against torch needs the model's own weights: leave out --random")
    against_torch = _wants_torch(against, random, "peft")
    from psynth_jax.bench.train import Workload
    from psynth_jax.bench.train import train as measure_train

    loaded = _model(model, dtype, random, mesh, "stacked")
    workload = Workload(examples, branches, branch_tokens, prompt_tokens, target_tokens)
    options = {"remat": remat, "implementation": implementation}
    with activity("measuring training steps"):
        found = measure_train(loaded, model, workload, repeats, options, against_torch=against_torch)
    _report("train", model, dtype, random, mesh, found, as_json)


def _wants_torch(against: str | None, random: bool, *more: str) -> bool:
    if against is None:
        return False
    if against != "torch":
        raise InputError(f"--against is {against!r}; it must be torch")
    needed = ["torch", *more]
    if not random:
        needed.insert(1, "accelerate")  # transformers reads .gguf with it
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--against torch needs {' and '.join(missing)}: pip install {' '.join(missing)}, or leave it out")
    return True


def _torch_source(model: str, random: bool) -> str | DecoderConfig:
    """Return what torch's model is made of: for random weights a preset's config."""
    from psynth_jax.presets import preset

    return preset(model).config if random else model


def _torch_apart(source: str | DecoderConfig, dtype: str, question: Question, repeats: int) -> dict[str, float] | None:
    """Measure torch before JAX takes the GPU; None where torch has no GPU, and is measured in turn with JAX."""
    from psynth_jax.bench import against_torch, torch_process

    if against_torch.torch_device() == "cpu":
        return None
    with activity("measuring torch"):
        found = torch_process.measure_apart(torch_process.TorchRequest(source, dtype, (question,), repeats))
    (record,) = found["questions"]
    return {"torch": record["torch_text_s"], "torch published": record["torch_published_s"]}


def _check_model(dtype: str, mesh: str | None) -> None:
    check_dtype(dtype)
    check_mesh(mesh)


def _model(name: str, dtype: str, random: bool, mesh: str | None, layers: str) -> Model:
    with activity(f"making random weights of {name}" if random else f"loading {name}"):
        return _made(name, dtype, random, mesh, layers)


def _made(name: str, dtype: str, random: bool, mesh: str | None, layers: Any) -> Model:
    from psynth_jax.convert.load import load_model
    from psynth_jax.convert.rules import parameter_dtype
    from psynth_jax.model import Model
    from psynth_jax.nn.decoder import Decoder
    from psynth_jax.nn.layer_forms import are_separate
    from psynth_jax.presets import preset

    if not random:
        return load_model(name, dtype, start_jax(mesh), layers)
    config, numbers = preset(name).config, parameter_dtype(dtype)
    assert numbers is not None
    devices = start_jax(mesh)
    if devices is None:
        from psynth_jax.bench.random_weights import random_decoder

        decoder = random_decoder(config, numbers, layers=layers)
    else:
        decoder = Decoder.random(config, dtype=numbers, mesh=devices)
        decoder = decoder.separated() if are_separate(layers) else decoder
    return Model(decoder, None, frozenset(), f"random {name}")


def _report(kind: str, model: str, dtype: str, random: bool, mesh: str | None, found: dict[str, Any], as_json: bool) -> None:
    facts = {
        "bench": kind,
        "model": model,
        "weights": "random" if random or model == TINY else "real",
        "dtype": dtype,
        "device": device_name(),
        **({} if mesh is None else {"mesh": mesh}),
        "jax": importlib.metadata.version("jax"),
        **found,
    }
    if as_json:
        write_json(facts)
        return
    console.print(view.facts(facts))
