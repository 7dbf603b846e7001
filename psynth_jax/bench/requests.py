"""What an engine gives many clients at once, and one client alone.

    ten requests      of ten shapes, one after the other: how many programs they compile
    one client        64 tokens at a time
    N clients         each asks again as soon as it has its answer; they begin one after the other

Half of the clients are workers, half read branches.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from psynth_jax.branches import Branches
from psynth_jax.model import Model
from psynth_jax.synthesis.engine import Engine
from psynth_jax.synthesis.requests import Event, Request

TOKENS = 64  # that each request of a client writes
ROUNDS = 2  # requests of each client
SLOTS = 384  # that a client's request takes at most, in whole pages
LATER = 2  # steps after which the next client begins
BRANCHES, BRANCH_TOKENS = 3, 128  # that a synthesis reads
REPEATS = 5

Say = Callable[[str], None]


def requests(model: Model, clients: int, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure an engine over a model; return times in seconds, counts, and tokens a second.

    ratio: tokens a second of all clients over those of one.  inter_token: seconds between two
    tokens of a request, while others are admitted and prefilled.  say: told what is being measured.
    """
    pool_tokens = 8192 + clients * SLOTS  # it must not grow while times are measured
    endless = dataclasses.replace(model, stop_ids=frozenset())
    engine = Engine(endless, pool_tokens=pool_tokens, max_batch=max(64, clients))
    say("compiling")
    engine.precompile(say)
    before = engine.stats()
    rng = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    say("ten different requests")
    for _ in range(10):
        _ask_of_any_shape(engine, rng)
    compilations = int(engine.stats()["compilations"] - before["compilations"])
    read = engine.synth.encode([_drawn(rng, BRANCH_TOKENS, vocabulary) for _ in range(BRANCHES)])
    one, many = _Clients(engine, read, rng), _Clients(engine, read, rng)
    say("one client")
    one.run(1, rounds=4)
    say(f"{clients} clients")
    many.run(clients, ROUNDS)
    from_branches, from_text = _first_tokens(engine, read, rng)
    stats = engine.stats()
    found = {
        "programs_before": before["programs"],
        "compilations": compilations,
        "clients": clients,
        "requests": len(many.firsts),
        "tokens_per_s_1": one.tokens_per_s,
        "tokens_per_s_n": many.tokens_per_s,
        "ratio": many.tokens_per_s / one.tokens_per_s,
        "ttft_p50_s": _percentile(many.firsts, 50),
        "ttft_p99_s": _percentile(many.firsts, 99),
        "inter_token_p50_s": _percentile(many.gaps, 50),
        "inter_token_p99_s": _percentile(many.gaps, 99),
        "ttft_branches_s": from_branches,
        "ttft_text_s": from_text,
        "prefix_hit_tokens": stats["prefix_hit_tokens"] - before["prefix_hit_tokens"],
        "pool_tokens": stats["pool_tokens"],
    }
    del read, one, many
    engine.close()
    return found | {"used_tokens_after": engine.stats()["used_tokens"]}


class _Clients:
    """Clients of an engine, and what they saw.

    firsts: seconds to the first token of each request.  gaps: seconds between two tokens of one.
    """

    def __init__(self, engine: Engine, read: Branches, rng: np.random.Generator):
        """Begin with none."""
        self._engine, self._read, self._rng = engine, read, rng
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.tokens_per_s = 0.0
        self._last: dict[int, float] = {}

    def run(self, clients: int, rounds: int) -> None:
        """Let clients ask, each as many times as there are rounds."""
        asked: list[Iterator[Request]] = [self._requests(number, rounds) for number in range(clients)]
        owners: dict[int, Iterator[Request]] = {}
        begin, tokens, steps = time.perf_counter(), 0, 0
        while asked or owners:
            if asked and (steps % LATER == 0 or not owners):
                self._next(asked.pop(0), owners)
            steps += 1
            for event in self._engine.step():
                if event.kind == "token":
                    tokens += 1
                    self._note(event)
                else:
                    self._next(owners.pop(event.request_id), owners)
        self.tokens_per_s = tokens / (time.perf_counter() - begin)

    def _next(self, client: Iterator[Request], owners: dict[int, Iterator[Request]]) -> None:
        request = next(client, None)
        if request is not None:
            owners[self._engine.submit(request).id] = client

    def _requests(self, number: int, rounds: int) -> Iterator[Request]:
        vocabulary = self._engine.synth.model.config.vocab_size
        for _ in range(rounds):
            prompt = _drawn(self._rng, int(self._rng.integers(20, 200)), vocabulary)
            branches = self._read if number % 2 else None
            yield Request(prompt, branches, max_new_tokens=TOKENS)

    def _note(self, event: Event) -> None:
        before = self._last.get(event.request_id)
        if before is None:
            self.firsts.append(event.at_s)
        else:
            self.gaps.append(event.at_s - before)
        self._last[event.request_id] = event.at_s


def _ask_of_any_shape(engine: Engine, rng: np.random.Generator) -> None:
    """Let 1 to 6 workers write 20 to 200 tokens, join them with as many texts, and answer."""
    vocabulary = engine.synth.model.config.vocab_size
    handles, count = [], int(rng.integers(1, 7))
    for _ in range(count):
        prompt = _drawn(rng, int(rng.integers(10, 61)), vocabulary)
        handles.append(engine.submit(Request(prompt, max_new_tokens=int(rng.integers(20, 201)), keep=True)))
    texts = [_drawn(rng, int(rng.integers(20, 201)), vocabulary) for _ in range(1 + count // 4)]
    written = [handle.branch for handle in handles]
    branches = Branches.join(*(branch for branch in written if branch is not None), engine.synth.encode(texts))
    prompt = _drawn(rng, int(rng.integers(10, 61)), vocabulary)
    engine.run([Request(prompt, branches, max_new_tokens=8)])


def _first_tokens(engine: Engine, read: Branches, rng: np.random.Generator) -> tuple[float, float]:
    """Return the median seconds to a first token from branches, and from the same tokens as text."""
    vocabulary = engine.synth.model.config.vocab_size
    from_branches: list[float] = []
    from_text: list[float] = []
    for _ in range(REPEATS):
        prompt = _drawn(rng, 48, vocabulary)
        pasted = [*itertools.chain.from_iterable(read.token_ids), *prompt]
        for request, times in (
            (Request(prompt, read, max_new_tokens=1), from_branches),
            (Request(pasted, max_new_tokens=1, salt="text"), from_text),
        ):
            engine.synth.runner.forget_prompts()
            (result,) = engine.run([request])
            assert result.ttft_s is not None
            times.append(result.ttft_s)
    return statistics.median(from_branches), statistics.median(from_text)


def _drawn(rng: np.random.Generator, length: int, vocabulary: int) -> list[int]:
    found: list[int] = rng.integers(0, vocabulary, length).tolist()
    return found


def _percentile(values: Sequence[float], percent: int) -> float:
    return float(np.percentile(values, percent))
