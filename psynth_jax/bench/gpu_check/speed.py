"""First and later tokens, workers, a training step, and single attention calls: ours and torch's."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from psynth_jax.bench import torch_process, ttft
from psynth_jax.bench.gpu_check.records import Records
from psynth_jax.bench.gpu_check.sizes import Sizes
from psynth_jax.bench.kernel import kernel
from psynth_jax.bench.question import Writing
from psynth_jax.bench.random_weights import random_branches, random_decoder
from psynth_jax.bench.timing import in_turn, timed
from psynth_jax.bench.train import Workload, train
from psynth_jax.config import DecoderConfig
from psynth_jax.model import Model
from psynth_jax.synthesis.pipeline import ParallelSynthesis

KERNEL_REPEATS = 5


def random_model(config: DecoderConfig, name: str, dtype: str) -> Model:
    """Return a model with random weights and no tokenizer."""
    return Model(random_decoder(config, jnp.dtype(dtype)), None, frozenset(), f"random {name}")


def ours(sizes: Sizes, records: Records) -> None:
    """Measure each question from caches and from text, and the workers."""
    model = random_model(sizes.model, sizes.name, sizes.dtype)
    synth = ttft.synthesizer(model)
    device = ttft.rates_found(in_turn(ttft.device_rates(model.decoder.dtype), 3))
    records.note(model=sizes.name, dtype=sizes.dtype, **dataclasses.asdict(device))
    for question, repeats in sizes.questions:
        if not records.has_time_for(f"question {question.name}", seconds=20.0):
            continue
        ttft.check(model, question, repeats)
        ready = random_branches(model, question.branches, question.branch_tokens)
        measures = ttft.routes(synth, question, ready)
        # From caches first: these are the figures that matter most should the time run out.
        short = {name: measures[name] for name in ("branches", "token")}
        seconds = in_turn(short, 3)
        records.note(last_caches=question.name, last_ttft_branches_s=seconds["branches"], last_token_s=seconds["token"])
        seconds |= in_turn({"text": measures["text"]}, repeats)
        del ready, measures, short
        found = ttft.against_floor(model, question, seconds, device)
        records.add(question=question.name, **dataclasses.asdict(question), **found)
    if records.has_time_for("workers", seconds=10.0):
        records.note(workers_s=_workers(synth, sizes.writing, 2), **_workers_named(sizes.writing))


def _workers(synth: ParallelSynthesis, writing: Writing, repeats: int) -> float:
    """Return the seconds from the workers' prompts to their branches."""
    prompts = writing.prompts(synth.model.config.vocab_size)

    def work() -> None:
        made = synth.work(prompts, max_new_tokens=writing.new_tokens)
        for branch in made.questions[0]:
            jax.block_until_ready([segment.cache for segment in branch.segments])

    return in_turn({"workers": timed(work)}, repeats)["workers"]


def _workers_named(writing: Writing) -> dict[str, int]:
    return {f"workers_{name}": size for name, size in dataclasses.asdict(writing).items()}


def torch(sizes: Sizes, records: Records) -> None:
    """Measure torch on the same sizes, with random weights of the same shape."""
    import torch
    import transformers

    from psynth_jax.bench import against_torch

    records.note(torch=torch.__version__, transformers=transformers.__version__, device=against_torch.torch_device())
    for question, repeats in sizes.questions:
        if records.has_time_for(f"question {question.name}", seconds=10.0):
            request = torch_process.TorchRequest(sizes.model, sizes.dtype, (question,), repeats)
            torch_process.measure(request, lambda record: records.add(**record))
    if records.has_time_for("workers", seconds=10.0):
        request = torch_process.TorchRequest(sizes.model, sizes.dtype, (), 2, sizes.writing)
        torch_process.measure(request, lambda record: records.note(**record))


def training_step(sizes: Sizes, records: Records) -> None:
    """Measure one training step of `psynth bench train`."""
    asked = sizes.train
    model = random_model(asked.model, asked.name, sizes.dtype)
    workload = Workload(asked.examples, asked.branches, asked.branch_tokens, asked.prompt_tokens, asked.target_tokens)
    options = {"remat": False, "implementation": "auto"}
    found = train(model, asked.name, workload, 3, options, against_torch=False)
    records.add(model=asked.name, dtype=sizes.dtype, **found)


def kernel_times(sizes: Sizes, records: Records) -> None:
    """Time single attention calls, as `psynth bench kernel` does."""
    for each in sizes.kernel_times:
        name = f"{each.case.name} cache {each.cache_dtype} {each.implementation}"
        if records.has_time_for(name, seconds=10.0):
            implementation: Any = each.implementation
            records.add(**kernel(each.case, each.dtype, each.cache_dtype, implementation, KERNEL_REPEATS))
