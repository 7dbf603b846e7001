"""Workers: prompts in, branches out.  All workers of all questions are rows of one batch.

    question 1   [ shared prompt ]            prefilled once, read by all
                   |-- worker 1   [ rest of its prompt | g g g g ]
                   `-- worker 2   [ rest of its prompt | g g ]           branch = a lease on the g's

The base model writes; adapter and mapper belong to the synthesizer.
"""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Sequence

from psynth_jax.branch import Branch, FinishReason, PositionMode, Segment
from psynth_jax.branches import Branches
from psynth_jax.engine.sequences import TokenSequence
from psynth_jax.synthesis.outputs import Cached, OnToken, Report, RowOutput, StreamedToken, tell_all
from psynth_jax.synthesis.runner import Runner
from psynth_jax.synthesis.sampling import SamplingOptions, sampling_of
from psynth_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class WorkerPrompt:
    """Prompt of one worker.  question, worker: its numbers.  seed: of its sampling.  given: fixed text after the prompt."""

    question: int
    worker: int
    prompt: tuple[int, ...]
    seed: tuple[int, int] = (0, 0)
    given: tuple[int, ...] = ()


def _blocks(runner: Runner, workers: Sequence[WorkerPrompt]) -> list[int]:
    """Return the block of each worker; those of a question are dealt over the branch blocks of its part."""
    count = max(worker.question for worker in workers) + 1
    numbers = collections.Counter[int]()
    blocks = []
    for worker in workers:
        blocks.append(runner.branch_block(worker.question, count, numbers[worker.question]))
        numbers[worker.question] += 1
    return blocks


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
    sequences = []
    for worker, block, output in zip(workers, _blocks(runner, workers), outputs, strict=True):
        sampling = sampling_of(options, worker.seed)
        prompt = (*worker.prompt, *worker.given)
        sequences.append(runner.sequence(prompt, options.max_new_tokens, output, block, sampling=sampling))

    runner.run(sequences, lambda: tell_all(outputs))
    made = []
    for worker, sequence, output in zip(workers, sequences, outputs, strict=True):
        made.append(_branch(sequence, worker, output.token_ids, output.finish_reason or "length", tokenizer, positions))
    return made


def encode_texts(
    runner: Runner, workers: Sequence[WorkerPrompt], tokenizer: Tokenizer | None, positions: PositionMode
) -> list[Branch]:
    """Compute the caches of fixed texts, each after its prompt, as if a worker had written them.

    Raises `NotFiniteError` naming the text whose cache is NaN or infinite.
    """
    sequences = []
    for worker, block in zip(workers, _blocks(runner, workers), strict=True):
        cached = Cached(runner, _text_name(worker, workers))
        sequences.append(runner.sequence((*worker.prompt, *worker.given), 0, cached, block))
    runner.run(sequences)
    made = []
    for worker, sequence in zip(workers, sequences, strict=True):
        made.append(_branch(sequence, worker, worker.given, "given", tokenizer, positions))
    return made


def _reporter(on_token: OnToken, worker: WorkerPrompt) -> Report:
    return lambda piece: on_token(StreamedToken(piece, worker.question, worker.worker))


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


def kept_branch(
    sequence: TokenSequence, written: Sequence[int], reason: FinishReason, tokenizer: Tokenizer | None, fingerprint: str
) -> Branches:
    """Return what a sequence has written behind its prompt as `Branches` of one."""
    begin = sequence.prompt_length
    segments = (Segment(sequence.held(begin, len(written))),)
    text = tokenizer.decode(written) if tokenizer is not None else ""
    branch = Branch(tuple(written), text, sequence.position + begin, len(written), segments, reason)
    return Branches([[branch]], fingerprint, batched=False)


def _branch(
    sequence: TokenSequence,
    worker: WorkerPrompt,
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
    prompt = len(worker.prompt)
    text = tokenizer.decode(written) if tokenizer is not None else ""
    segments: tuple[Segment, ...] = ()
    if written:
        held = sequence.held(prompt + position, len(written))
        segments = (Segment(held, position),)
    return Branch(tuple(written), text, prompt, len(written), segments, reason)
