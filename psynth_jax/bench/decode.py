"""Prefill and decoding speed of the base model, workers in one batch against one after another, and against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psynth_jax.bench import against_torch as torch_bench
from psynth_jax.bench.against_torch import Source
from psynth_jax.bench.timing import in_turn, timed
from psynth_jax.engine.sequences import Next, Token
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.synthesis.inputs import check_window
from psynth_jax.synthesis.outputs import RowOutput
from psynth_jax.synthesis.runner import Runner
from psynth_jax.synthesis.sampling import SamplingOptions
from psynth_jax.synthesis.workers import WorkerPrompt, generate_workers


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
    runner = Runner(model, "auto", None, model.config.vocab_size)
    _make_room(runner, [*[prompt_tokens + new_tokens] * rows, prefill_tokens])
    options = SamplingOptions(max_new_tokens=new_tokens)
    workers = [WorkerPrompt(0, index, tuple(prompt)) for index, prompt in enumerate(prompts)]

    def work(*chosen: WorkerPrompt) -> None:
        runner.forget_prompts()
        generate_workers(runner, chosen, options, frozenset(), None, "exact")
        jax.block_until_ready(runner.pool.heads)

    def one_after_another() -> None:
        for worker in workers:
            work(worker)

    measures: dict[str, Callable[[], float]] = {
        "prefill": timed(lambda: _prefill(runner, long)),
        "decode": lambda: _decode(runner, prompts, options),
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


def _make_room(runner: Runner, lengths: list[int]) -> None:
    """Let the pool grow to what all rows need: a pool that grows later has its programs compiled again."""
    leases = []
    for number, length in enumerate(lengths):
        leases.append(runner.reserve(length, runner.branch_block(0, 1, number)))
    for lease in leases:
        lease.release()


def _ends_at_once(token: Token) -> Next:
    return Next.END


def _prefill(runner: Runner, tokens: list[int]) -> None:
    runner.forget_prompts()
    sequence = runner.sequence(tokens, 0, _ends_at_once, 0)
    runner.run([sequence])
    jax.block_until_ready(runner.pool.heads)


def _decode(runner: Runner, prompts: list[list[int]], options: SamplingOptions) -> float:
    """Return the seconds from the moment when every row has its first token to the last token of all."""
    runner.forget_prompts()
    outputs, sequences = [], []
    for number, prompt in enumerate(prompts):
        output = RowOutput(options, frozenset(), None, runner)
        block = runner.branch_block(0, 1, number)
        outputs.append(output)
        sequences.append(runner.sequence(prompt, options.max_new_tokens, output, block))
    runner.run(sequences)
    # Prompts are read in several calls: the rows of the first ones wait for the others.
    begin = max(output.first_s or 0.0 for output in outputs)
    return max(output.last_s for output in outputs) - begin
