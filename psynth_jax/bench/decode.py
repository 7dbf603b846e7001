"""Prefill and decoding speed of the base model, workers in one batch against one after another, and against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psynth_jax.bench import against_torch as torch_bench
from psynth_jax.bench.against_torch import Source
from psynth_jax.bench.timing import in_turn, timed
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.sharding import ROW_AXES, shards
from psynth_jax.synthesis.engine import Engine, slots_needed
from psynth_jax.synthesis.generate import RowOutput, generate
from psynth_jax.synthesis.inputs import check_window
from psynth_jax.synthesis.sampling import SamplingOptions, row_sampling
from psynth_jax.synthesis.step import Reader
from psynth_jax.synthesis.workers import WorkerPrompt, decode_workers


def decode(
    model: Model,
    source: Source,
    rows: int,
    new_tokens: int,
    prompt_tokens: int,
    prefill_tokens: int,
    repeats: int,
    *,
    against_torch: bool,
) -> dict[str, Any]:
    """Measure on random tokens: a prefill of one row, decoding of `rows` rows, and workers batched and one by one.

    Decoding counts the steps after the first token.  Workers count prefill and decoding, from prompts to branches.
    """
    if min(rows, new_tokens, prompt_tokens, prefill_tokens, repeats) < 1 or new_tokens < 2:
        raise InputError("rows, prompt tokens, prefill tokens and repeats must be at least 1, new tokens at least 2")
    for what, tokens, more in (("the prompt", prompt_tokens, new_tokens), ("the timed prefill", prefill_tokens, 0)):
        check_window(model, 0, tokens, more, what)
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, model.config.vocab_size, (rows, prompt_tokens)).tolist()
    long = rng.integers(0, model.config.vocab_size, prefill_tokens).tolist()
    engine = Engine(model.decoder)
    options = SamplingOptions(max_new_tokens=new_tokens)
    workers = [WorkerPrompt(0, index, tuple(prompt)) for index, prompt in enumerate(prompts)]

    def work(*chosen: WorkerPrompt) -> None:
        made = decode_workers(engine, chosen, options, frozenset(), None, "exact")
        jax.block_until_ready([segment.cache for branch in made for segment in branch.segments])

    def one_after_another() -> None:
        for worker in workers:
            work(worker)

    measures: dict[str, Callable[[], float]] = {
        "prefill": timed(lambda: _prefill(engine, long)),
        "decode": lambda: _decode(engine, prompts, options),
        "batch": timed(lambda: work(*workers)),
        "serial": timed(one_after_another),
    }
    if against_torch:
        measures["torch prefill"] = torch_bench.prefill(source, str(model.decoder.dtype), long)
        measures["torch decode"] = torch_bench.decode(source, str(model.decoder.dtype), prompts, new_tokens)
    seconds = in_turn(measures, repeats)
    found = {
        "rows": rows,
        "new_tokens": new_tokens,
        "prompt_tokens": prompt_tokens,
        "prefill_tokens": prefill_tokens,
        "prefill_s": seconds["prefill"],
        "decode_s": seconds["decode"],
        "tokens_per_s": rows * (new_tokens - 1) / seconds["decode"],
        "workers_batch_s": seconds["batch"],
        "workers_serial_s": seconds["serial"],
        "batch_over_serial": seconds["batch"] / seconds["serial"],
        "repeats": repeats,
    }
    if against_torch:
        for name in ("prefill", "decode"):
            found[f"torch_{name}_s"] = seconds[f"torch {name}"]
            found[f"{name}_over_torch"] = seconds[name] / seconds[f"torch {name}"]
    return found


def _prefill(engine: Engine, tokens: list[int]) -> None:
    nothing = np.zeros(1, np.int32)
    cache = engine.allocate(1, slots_needed(0, len(tokens), 0))
    greedy = row_sampling(SamplingOptions(), [(0, 0)])
    jax.block_until_ready(engine.prefill(Reader(), [tokens], cache, nothing, nothing, greedy))


def _decode(engine: Engine, prompts: list[list[int]], options: SamplingOptions) -> float:
    """Return the seconds from each row's first token to its last."""
    nothing = np.zeros(len(prompts), np.int32)
    row_axes = ROW_AXES if len(prompts) % shards(engine.mesh, ROW_AXES) == 0 else ()
    cache = engine.allocate(len(prompts), slots_needed(0, len(prompts[0]), options.max_new_tokens), row_axes)
    outputs = [RowOutput(options, frozenset(), None) for _ in prompts]
    seeds = [(0, 0)] * len(prompts)
    run = generate(engine, Reader(), prompts, outputs, cache, nothing, nothing, options, seeds, feed_last=False)
    return float(run.decode_s.max())
