"""First and later tokens, workers, a training step, single attention calls: ours and torch's."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.bench import against_torch, torch_process, ttft
from psynth_jax.bench.floors import DeviceRates, step_work
from psynth_jax.bench.gpu_check.records import Records
from psynth_jax.bench.gpu_check.sizes import Sizes
from psynth_jax.bench.kernel import kernel
from psynth_jax.bench.question import Question, Writing
from psynth_jax.bench.random_weights import random_branches, random_decoder
from psynth_jax.bench.timing import in_turn, timed
from psynth_jax.bench.train import Workload, train
from psynth_jax.config import DecoderConfig
from psynth_jax.mapper import Mapper
from psynth_jax.model import Model
from psynth_jax.nn.layer_forms import Layers
from psynth_jax.synthesis.pipeline import ParallelSynthesis

KERNEL_REPEATS, CACHE_REPEATS, WORKER_REPEATS = 5, 3, 2


def random_model(config: DecoderConfig, name: str, dtype: str, layers: Layers = "auto") -> Model:
    """Return a model with random weights and no tokenizer; layers as for `load_model`."""
    return Model(random_decoder(config, jnp.dtype(dtype), layers=layers), None, frozenset(), f"random {name}")


def ours(sizes: Sizes, records: Records) -> None:
    """Measure first and later tokens from caches, then workers, then first tokens from text."""
    model = random_model(sizes.model, sizes.name, sizes.dtype)
    synth = ttft.synthesizer(model)
    # torch maps keys and values too; a new mapper is the identity, and computed all the same.
    mapper = Mapper.initialise(jax.random.key(0))
    synth.set_mapper({name: np.asarray(value) for name, value in vars(mapper).items()})
    device = ttft.rates_found(in_turn(ttft.device_rates(model.decoder.dtype), 3))
    records.note(model=sizes.name, dtype=sizes.dtype, **dataclasses.asdict(device))
    found: dict[Question, dict[str, Any]] = {}
    for question, _ in sizes.questions:
        if records.has_time_for(f"caches of {question.name}", seconds=15.0):
            found[question] = _from_caches(synth, question, device)
            records.add(found[question])
    if records.has_time_for("workers", seconds=15.0):
        records.note(**_workers(synth, sizes.writing, device))
    for question, repeats in sizes.questions:
        if question in found and records.has_time_for(f"text of {question.name}", seconds=20.0):
            seconds = _text_seconds(synth, question, repeats)
            both = {"text": seconds, "branches": found[question]["ttft_branches_s"]}
            found[question] |= ttft.from_text(synth.model, question, both, device)
            found[question]["text_repeats"] = repeats
            records.write()


def _from_caches(
    synth: ParallelSynthesis,
    question: Question,
    device: DeviceRates,
) -> dict[str, Any]:
    ttft.check(synth.model, question, CACHE_REPEATS)
    ready = random_branches(synth.model, question.branches, question.branch_tokens)
    measures = ttft.routes(synth, question, ready)
    seconds = in_turn({name: measures[name] for name in ("branches", "token")}, CACHE_REPEATS)
    found = ttft.from_caches(synth.model, question, seconds, device)
    sizes = dataclasses.asdict(question)
    return {"question": question.name, **sizes, "repeats": CACHE_REPEATS, **found}


def _text_seconds(synth: ParallelSynthesis, question: Question, repeats: int) -> float:
    measure = lambda: ttft.from_text_s(synth, question)  # noqa: E731
    return in_turn({"text": measure}, repeats)["text"]


def _workers(synth: ParallelSynthesis, writing: Writing, device: DeviceRates) -> dict[str, float]:
    """Return the seconds from the workers' prompts to their branches, and their floor."""
    config, itemsize = synth.model.config, synth.model.decoder.dtype.itemsize
    prompts = writing.prompts(config.vocab_size)

    def work() -> None:
        synth.runner.forget_prompts()
        synth.work(prompts, max_new_tokens=writing.new_tokens)
        jax.block_until_ready(synth.runner.pool.heads)

    seconds = in_turn({"workers": timed(work)}, WORKER_REPEATS)["workers"]
    floor = step_work(config, itemsize, writing.prompt_tokens, 0, writing.rows).floor(device)
    for written in range(writing.new_tokens):
        cached = writing.prompt_tokens + written
        floor += step_work(config, itemsize, 1, cached, writing.rows).floor(device)
    sizes = {f"workers_{name}": size for name, size in dataclasses.asdict(writing).items()}
    return {**sizes, "workers_s": seconds, "workers_floor_s": floor}


def torch(sizes: Sizes, records: Records) -> None:
    """Measure torch on the same sizes, with random weights of the same shape."""
    import torch
    import transformers

    records.note(
        torch=torch.__version__,
        transformers=transformers.__version__,
        device=against_torch.torch_device(),
    )
    for question, repeats in sizes.questions:
        if records.has_time_for(f"question {question.name}", seconds=10.0):
            request = torch_process.TorchRequest(sizes.model, sizes.dtype, (question,), repeats)
            torch_process.measure(request, records.add)
    if records.has_time_for("workers", seconds=10.0):
        request = torch_process.TorchRequest(
            sizes.model,
            sizes.dtype,
            (),
            WORKER_REPEATS,
            sizes.writing,
        )
        torch_process.measure(request, lambda record: records.note(**record))


def training_step(sizes: Sizes, records: Records) -> None:
    """Measure one training step of `psynth bench train`."""
    asked = sizes.train
    model = random_model(asked.model, asked.name, sizes.dtype, "stacked")
    workload = Workload(
        asked.examples,
        asked.branches,
        asked.branch_tokens,
        asked.prompt_tokens,
        asked.target_tokens,
    )
    options = {"remat": False, "implementation": "auto"}
    found = train(model, asked.name, workload, 3, options, against_torch=False)
    records.add({"model": asked.name, "dtype": sizes.dtype, **found})


def kernel_times(sizes: Sizes, records: Records) -> None:
    """Time single attention calls, as `psynth bench kernel` does."""
    for each in sizes.kernel_times:
        name = f"{each.case.name} cache {each.cache_dtype} {each.implementation}"
        if records.has_time_for(name, seconds=10.0):
            how: Any = each.implementation
            records.add(kernel(each.case, each.dtype, each.cache_dtype, how, KERNEL_REPEATS))
