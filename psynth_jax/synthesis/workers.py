"""Workers: prompts in, branches out.  All workers of all questions are rows of one batch.

    question 1   [ shared prompt ]            prefilled once, read by all
                   |-- worker 1   [ rest of its prompt | g g g g ]
                   `-- worker 2   [ rest of its prompt | g g ]           branch = a lease on the g's

The base model writes; adapter and mapper belong to the synthesizer.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from psynth_jax.branch import Branch, FinishReason, PositionMode, Segment
from psynth_jax.branches import Branches
from psynth_jax.engine.sequences import PositionedRun, TokenSequence
from psynth_jax.kv.pool import Lease
from psynth_jax.synthesis.outputs import Cached, OnToken, RowOutput, StreamedToken
from psynth_jax.synthesis.runner import Runner, positioned
from psynth_jax.synthesis.sampling import SamplingOptions, sampling_of
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
class _Prefix:
    """A prompt that workers of one question on one block share: its runs, and what keeps them."""

    length: int
    runs: tuple[PositionedRun, ...]
    lease: Lease


@dataclasses.dataclass(frozen=True)
class _Row:
    """A worker, where it is, and what it shares with others (None: nothing)."""

    worker: WorkerPrompt
    block: int
    prefix: _Prefix | None

    @property
    def rest(self) -> tuple[int, ...]:
        """Its prompt and its fixed text, behind what it shares."""
        shared = 0 if self.prefix is None else self.prefix.length
        return (*self.worker.prompt, *self.worker.given)[shared:]

    @property
    def position(self) -> int:
        """The position of the first token of `rest`."""
        return 0 if self.prefix is None else self.prefix.length

    @property
    def shared(self) -> tuple[PositionedRun, ...]:
        """The runs of its shared prompt."""
        return () if self.prefix is None else self.prefix.runs

    @property
    def kept(self) -> tuple[Lease, ...]:
        """The lease of its shared prompt."""
        return () if self.prefix is None else (self.prefix.lease,)


def _rows(runner: Runner, workers: Sequence[WorkerPrompt]) -> list[_Row]:
    """Give every worker a block, and prefill the prompts that the workers of a question share.

    A prompt that workers on several blocks share is prefilled once on each of them: none reads another block.
    """
    questions: dict[int, list[WorkerPrompt]] = {}
    for worker in workers:
        questions.setdefault(worker.question, []).append(worker)
    count = max(questions) + 1
    prefixes: dict[tuple[int, int], _Prefix] = {}
    filling = []
    for question, group in questions.items():
        length = shared_prefix([worker.prompt for worker in group])
        blocks = {runner.branch_block(question, count, number) for number in range(len(group))}
        for block in sorted(blocks) if length else ():
            cached = Cached(runner, f"the prompt that workers of question {question + 1} share")
            sequence = runner.sequence(group[0].prompt[:length], 0, cached, block)
            filling.append(sequence)
            lease = sequence.lease.part(0, length)
            prefixes[question, block] = _Prefix(length, tuple(positioned(lease, 0)), lease)
    if filling:
        runner.run(filling)
    rows = {}
    for question, group in questions.items():
        for number, worker in enumerate(group):
            block = runner.branch_block(question, count, number)
            rows[worker] = _Row(worker, block, prefixes.get((question, block)))
    return [rows[worker] for worker in workers]


def generate_workers(
    runner: Runner,
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
    outputs = []
    for worker in workers:
        output = RowOutput(
            options,
            stop_ids,
            tokenizer,
            runner,
            _worker_name(worker, workers),
            append_last=True,
            report=None if on_token is None else _reporter(on_token, worker),
        )
        outputs.append(output)
    rows, sequences = _rows(runner, workers), []
    for row, output in zip(rows, outputs, strict=True):
        sequences.append(
            runner.sequence(
                row.rest,
                options.max_new_tokens,
                output,
                row.block,
                sampling=sampling_of(options, row.worker.seed),
                shared=row.shared,
                kept=row.kept,
                position=row.position,
            )
        )
    runner.run(sequences)
    made = []
    for row, sequence, output in zip(rows, sequences, outputs, strict=True):
        made.append(_branch(sequence, row, output.token_ids, output.finish_reason or "length", tokenizer, positions))
    return made


def encode_texts(
    runner: Runner, workers: Sequence[WorkerPrompt], tokenizer: Tokenizer | None, positions: PositionMode
) -> list[Branch]:
    """Compute the caches of fixed texts, each after its prompt, as if a worker had written them.

    Raises `NotFiniteError` naming the text whose cache is NaN or infinite.
    """
    rows, sequences = _rows(runner, workers), []
    for row in rows:
        cached = Cached(runner, _text_name(row.worker, workers))
        sequence = runner.sequence(row.rest, 0, cached, row.block, shared=row.shared, kept=row.kept, position=row.position)
        sequences.append(sequence)
    runner.run(sequences)
    made = []
    for row, sequence in zip(rows, sequences, strict=True):
        made.append(_branch(sequence, row, row.worker.given, "given", tokenizer, positions))
    return made


def _reporter(on_token: OnToken, worker: WorkerPrompt) -> Callable[[str, int | None], None]:
    return lambda piece, token: on_token(StreamedToken(piece, worker.question, worker.worker, token))


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
    sequence: TokenSequence,
    row: _Row,
    written: Sequence[int],
    reason: FinishReason,
    tokenizer: Tokenizer | None,
    positions: PositionMode,
) -> Branch:
    """Lease a worker's branch from its slots.

    exact            what was written, at 0 .. G - 1
    reference_live   the prompt's last token at -1, then what was written without its last token; span G all the same
    """
    position = -1 if positions == "reference_live" else 0
    prompt = len(row.worker.prompt)
    text = tokenizer.decode(written) if tokenizer is not None else ""
    segments: tuple[Segment, ...] = ()
    if written:
        lease = sequence.lease.part(prompt - row.position + position, len(written))
        segments = (Segment(lease, position),)
    return Branch(tuple(written), text, prompt, len(written), segments, reason)
