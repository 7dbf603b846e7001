"""Time to first and later tokens, from branches that are ready and from the same tokens as text.

Decoding reads every cached token once for each new one; what twice as many cost is measured too.
The floor of both is what the device's memory and matrix units, measured in the same run, allow: see
`floors.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from psynth_jax.bench import rates
from psynth_jax.bench.floors import DeviceRates, step_work
from psynth_jax.bench.question import Question
from psynth_jax.bench.timing import in_turn
from psynth_jax.branches import Branches
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.synthesis.inputs import check_window
from psynth_jax.synthesis.pipeline import ParallelSynthesis

DECODED = 16  # tokens after the first that are timed


def check(model: Model, question: Question, repeats: int) -> None:
    """Raise `InputError` or `ContextLengthError` for a question that cannot be measured."""
    if min(*dataclasses.astuple(question), repeats) < 1:
        raise InputError("branches, branch tokens, prompt tokens and repeats must be at least 1")
    check_window(model, 0, question.cached + question.prompt_tokens, 1, "the pasted text")
    check_window(
        model,
        question.branch_tokens,
        question.prompt_tokens,
        DECODED + 1,
        "the answer from branches",
    )


def synthesizer(model: Model) -> ParallelSynthesis:
    """Return a synthesizer that stops at no token."""
    return ParallelSynthesis(dataclasses.replace(model, stop_ids=frozenset()))


def routes(
    synth: ParallelSynthesis,
    question: Question,
    ready: Branches,
) -> dict[str, Callable[[], float]]:
    """Return measures of the first token from "text" and "branches", and of a later "token"."""
    vocabulary = synth.model.config.vocab_size
    prompt = question.prompt(vocabulary)

    def branches() -> float:
        synth.runner.forget_prompts()
        return synth.synthesize(prompt, ready, max_new_tokens=1).ttft_s

    return {
        "text": lambda: from_text_s(synth, question),
        "branches": branches,
        "token": lambda: later_token(synth, prompt, ready),
    }


def from_text_s(synth: ParallelSynthesis, question: Question) -> float:
    """Return the seconds to the first token from text, of which nothing was run before."""
    vocabulary = synth.model.config.vocab_size
    texts, prompt = question.texts(vocabulary), question.prompt(vocabulary)
    synth.runner.forget_prompts()
    return synth.synthesize_text(prompt, texts, max_new_tokens=1).ttft_s


def later_token(synth: ParallelSynthesis, prompt: list[int], ready: Branches) -> float:
    """Return the seconds of a token after the first."""
    answer = synth.synthesize(prompt, ready, max_new_tokens=DECODED + 1)
    return 1 / float(answer.decode_tokens_per_s)


def device_rates(dtype: Any) -> dict[str, Callable[[], float]]:
    """Return measures for `rates_found`."""
    return {"copy": rates.copy(), "matmul": rates.matmul(dtype)}


def rates_found(seconds: Mapping[str, float]) -> DeviceRates:
    """Return the rates that the measures of `device_rates` mean."""
    return DeviceRates(rates.bandwidth(seconds["copy"]), rates.matmul_rate(seconds["matmul"]))


def from_caches(
    model: Model,
    question: Question,
    seconds: Mapping[str, float],
    device: DeviceRates,
) -> dict[str, float]:
    """Return the times of first and later tokens from caches, and their floors."""
    config, itemsize = model.config, model.decoder.dtype.itemsize
    first = step_work(config, itemsize, question.prompt_tokens, question.cached)
    later = step_work(config, itemsize, 1, question.cached + question.prompt_tokens)
    return {
        "ttft_branches_s": seconds["branches"],
        "floor_s": first.floor(device),
        "ratio_to_floor": seconds["branches"] / first.floor(device),
        "next_token_s": seconds["token"],
        "next_token_floor_s": later.floor(device),
        "copy_bytes_per_s": device.bytes_per_s,
        "matmul_flops_per_s": device.flops_per_s,
    }


def from_text(
    model: Model,
    question: Question,
    seconds: Mapping[str, float],
    device: DeviceRates,
) -> dict[str, float]:
    """Return the time of the first token from text, its floor, and how it compares to caches."""
    tokens = question.cached + question.prompt_tokens
    work = step_work(model.config, model.decoder.dtype.itemsize, tokens, 0)
    return {
        "ttft_text_s": seconds["text"],
        "text_floor_s": work.floor(device),
        "ratio": seconds["text"] / seconds["branches"],
    }


def ttft(
    model: Model,
    question: Question,
    repeats: int,
    *,
    torch_routes: Callable[[], Mapping[str, Callable[[], float]]] | None = None,
    torch_seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Measure both routes on random tokens, and torch's on the same ones.

    The text route prefills all tokens, the branch route those of the prompt.  Decoding, from these
    branches and from twice as many, counts the tokens after the first.

    Args:
      model: what is measured.
      question: the sizes.
      repeats: measured runs of each kind, in turn.
      torch_routes: makes torch's measures (`torch_process.routes`), to be run in turn with ours.
      torch_seconds: torch's seconds, where they were measured apart.
    """
    check(model, question, repeats)
    vocabulary = model.config.vocab_size
    synth = synthesizer(model)
    made = synth.encode(question.texts(vocabulary))
    twice = Branches.join(made, synth.encode(question.texts(vocabulary, 1)))
    prompt = question.prompt(vocabulary)
    measures = routes(synth, question, made)
    measures["token twice"] = lambda: later_token(synth, prompt, twice)
    measures |= device_rates(model.decoder.dtype)
    if torch_routes is not None:
        measures |= torch_routes()
    seconds = in_turn(measures, repeats) | dict(torch_seconds or {})
    device = rates_found(seconds)
    found = dataclasses.asdict(question) | from_text(model, question, seconds, device)
    found |= from_caches(model, question, seconds, device)
    found |= {
        "token_s": seconds["token"],
        "token_twice_s": seconds["token twice"],
        "twice_over_once": seconds["token twice"] / seconds["token"],
        "repeats": repeats,
    }
    if "torch" in seconds:
        found |= {
            "torch_prefill_s": seconds["torch"],
            "text_over_torch": seconds["text"] / seconds["torch"],
            "torch_text_s": seconds["torch"],
            "torch_published_s": seconds["torch published"],
        }
    return found
