"""Workers: prompts in, branches out.  All workers of all questions are rows of one batch.

    question 1   [ shared prompt ]            prefilled once, into one row
                   |-- worker 1   [ rest of its prompt | g g g g ]
                   `-- worker 2   [ rest of its prompt | g g ]           branch = the g's of a row

The base model writes; adapter and mapper belong to the synthesizer.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.branch import Branch, FinishReason, PositionMode, Segment
from psynth_jax.branches import Branches, branch_view
from psynth_jax.cache import KVCache
from psynth_jax.sharding import ROW_AXES
from psynth_jax.synthesis.engine import Engine, not_finite, slots_needed
from psynth_jax.synthesis.generate import OnToken, RowOutput, StreamedToken, generate
from psynth_jax.synthesis.placement import RowPlan, plan_rows
from psynth_jax.synthesis.sampling import SamplingOptions
from psynth_jax.synthesis.step import Reader
from psynth_jax.tokenizer import Tokenizer

SHORTEST_SHARED_PREFIX = 16  # below this, one more prefill costs more than it saves


@dataclasses.dataclass(frozen=True)
class WorkerPrompt:
    """Prompt of one worker.  question, worker: its numbers.  seed: of its sampling.  given: fixed text after the prompt."""

    question: int
    worker: int
    prompt: tuple[int, ...]
    seed: tuple[int, int] = (0, 0)
    given: tuple[int, ...] = ()


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all prompts share, 0 if that is few or there is one prompt.

    At most one less than the shortest prompt: a row needs a token of its own to go on from.
    """
    if len(prompts) < 2:
        return 0
    shortest = min(len(prompt) for prompt in prompts)
    columns = np.array([prompt[:shortest] for prompt in prompts])
    same = (columns == columns[0]).all(axis=0)
    length = min(shortest if same.all() else int(same.argmin()), shortest - 1)
    return length if length >= SHORTEST_SHARED_PREFIX else 0


@dataclasses.dataclass(frozen=True)
class _Prefixes:
    """Shared prompts, prefilled: what rows read of them, and how many tokens each row (and each worker) shares."""

    reader: Reader
    of_row: HostArray
    of_worker: list[int]


def _prefill_prefixes(engine: Engine, workers: Sequence[WorkerPrompt], plan: RowPlan) -> _Prefixes:
    """Prefill, in one batch, the prompt that the workers of each question share.  On a mesh every device holds it."""
    groups: dict[int, list[WorkerPrompt]] = {}
    for worker in workers:
        groups.setdefault(worker.question, []).append(worker)
    shared = {question: shared_prefix([worker.prompt for worker in group]) for question, group in groups.items()}
    if engine.model.config.local is not None:  # a row of its own can be longer than the window, a shared prompt cannot
        shared = dict.fromkeys(groups, 0)
    of_worker = [shared[worker.question] for worker in workers]
    of_row = np.array(plan.spread(of_worker, 0), np.int32)
    prompts = [group[0].prompt[: shared[question]] for question, group in groups.items() if shared[question]]
    if not prompts:
        return _Prefixes(Reader(), of_row, of_worker)
    cache = engine.allocate(len(prompts), slots_needed(0, max(len(prompt) for prompt in prompts), 0), for_branches=True)
    nothing = np.zeros(len(prompts), np.int32)
    cache, _, _ = engine.prefill(Reader(), prompts, cache, nothing, nothing, None)
    rows = {question: row for row, question in enumerate(question for question in groups if shared[question])}

    def prefix(worker: WorkerPrompt) -> list[Branch]:
        length = shared[worker.question]
        if not length:
            return []
        return [Branch((), "", 0, length, (Segment(cache, rows[worker.question], 0, length),), "given")]

    view = branch_view(plan.spread([prefix(worker) for worker in workers], []))
    return _Prefixes(Reader(view=engine.place(view)), of_row, of_worker)


def decode_workers(
    engine: Engine,
    workers: Sequence[WorkerPrompt],
    options: SamplingOptions,
    stop_ids: frozenset[int],
    tokenizer: Tokenizer | None,
    positions: PositionMode,
    on_token: OnToken | None = None,
) -> list[Branch]:
    """Let all workers write, in one batch; return the branch of each.

    Raises `NotFiniteError` naming the worker whose logits are NaN or infinite.
    """
    outputs = [RowOutput(options, stop_ids, tokenizer, _worker_name(worker, workers)) for worker in workers]
    plan = plan_rows([worker.question for worker in workers], engine.mesh)
    prefixes = _prefill_prefixes(engine, workers, plan)
    prompts = [worker.prompt[shared:] for worker, shared in zip(workers, prefixes.of_worker, strict=True)]
    longest = max(len(prompt) for prompt in prompts)
    slots = slots_needed(0, longest, options.max_new_tokens)
    cache = engine.allocate(plan.count, slots, ROW_AXES, for_branches=True)
    worker_at: list[WorkerPrompt | None] = plan.spread(workers, None)

    def report(row: int, piece: str, token: int | None) -> None:
        worker = worker_at[row]
        if on_token is not None and worker is not None:
            on_token(StreamedToken(piece, worker.question, worker.worker, token))

    run = generate(
        engine,
        prefixes.reader,
        plan.spread(prompts, ()),
        plan.spread(outputs, None),
        cache,
        np.zeros(plan.count, np.int32),
        prefixes.of_row,
        options,
        plan.spread([worker.seed for worker in workers], (0, 0)),
        report,
        feed_last=True,
    )
    return [
        _branch(run.cache, row, worker, shared, output.token_ids, output.finish_reason or "length", tokenizer, positions)
        for row, worker, shared, output in zip(plan.of, workers, prefixes.of_worker, outputs, strict=True)
    ]


def encode_workers(
    engine: Engine, workers: Sequence[WorkerPrompt], tokenizer: Tokenizer | None, positions: PositionMode
) -> list[Branch]:
    """Compute the caches of fixed texts, each after its prompt, as if a worker had written them.

    Raises `NotFiniteError` naming the text whose last hidden state, and so whose cache, is NaN or infinite.
    """
    plan = plan_rows([worker.question for worker in workers], engine.mesh)
    prefixes = _prefill_prefixes(engine, workers, plan)
    fed = [(*worker.prompt, *worker.given)[shared:] for worker, shared in zip(workers, prefixes.of_worker, strict=True)]
    slots = slots_needed(0, max(len(row) for row in fed), 0)
    cache = engine.allocate(plan.count, slots, ROW_AXES, for_branches=True)
    nothing = np.zeros(plan.count, np.int32)
    cache, hidden, _ = engine.prefill(prefixes.reader, plan.spread(fed, ()), cache, nothing, prefixes.of_row, None)
    finite = np.isfinite(np.asarray(hidden)).all(axis=-1)
    for row, worker in zip(plan.of, workers, strict=True):
        if not finite[row]:
            raise not_finite(engine, f"keys and values of {_text_name(worker, workers)}")
    return [
        _branch(cache, row, worker, shared, worker.given, "given", tokenizer, positions)
        for row, worker, shared in zip(plan.of, workers, prefixes.of_worker, strict=True)
    ]


def grouped(workers: Sequence[WorkerPrompt], made: Sequence[Branch], fingerprint: str, *, batched: bool) -> Branches:
    """Return the workers' branches by question."""
    questions: list[list[Branch]] = [[] for _ in range(workers[-1].question + 1)]
    for worker, branch in zip(workers, made, strict=True):
        questions[worker.question].append(branch)
    return Branches(questions, fingerprint, batched=batched)


def _worker_name(worker: WorkerPrompt, workers: Sequence[WorkerPrompt]) -> str:
    return f"worker {worker.worker + 1}{_of_question(worker, workers)}"


def _text_name(worker: WorkerPrompt, workers: Sequence[WorkerPrompt]) -> str:
    return f"text {worker.worker + 1}{_of_question(worker, workers)}"


def _of_question(worker: WorkerPrompt, workers: Sequence[WorkerPrompt]) -> str:
    return f" of question {worker.question + 1}" if workers[-1].question else ""


def warn_of_copies(workers: Sequence[WorkerPrompt], options: SamplingOptions) -> None:
    """Warn when greedy workers of one question have the same prompt: their branches would be copies of each other."""
    if options.greedy and len({(worker.question, worker.prompt) for worker in workers}) < len(workers):
        warnings.warn(
            "greedy workers with the same prompt write the same branch: give each its own role, or a temperature above 0",
            stacklevel=3,
        )


def _branch(
    cache: KVCache,
    row: int,
    worker: WorkerPrompt,
    shared: int,
    written: Sequence[int],
    reason: FinishReason,
    tokenizer: Tokenizer | None,
    positions: PositionMode,
) -> Branch:
    """Cut a worker's branch out of its row, whose slot 0 stands at position `shared`.

    exact            what was written, at 0 .. G - 1
    reference_live   the prompt's last token at -1, then what was written without its last token; span G all the same
    """
    first = len(worker.prompt) - shared - (positions == "reference_live")
    text = tokenizer.decode(written) if tokenizer is not None else ""
    segments = (Segment(cache, row, first, len(written)),) if written else ()
    return Branch(tuple(written), text, len(worker.prompt), len(written), segments, reason)
