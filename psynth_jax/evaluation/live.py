"""Workers that write live about the questions of a benchmark, once, whatever methods read of it later.

    Question.worker_prompt (+ a role) -> all workers of a batch of questions -> questions.jsonl -> Question with branches

    DIR/questions.jsonl   {"task": "gsm8k", "id": "0", "question": "...", "answers": ["18"], "seconds": 3.1, "batch": 8,
                           "workers": [{"prompt": "...", "text": "...", "token_ids": [...], "finish_reason": "stop",
                                        "role": "", "tokens": 103}, ...]}
    DIR/others.jsonl      the same, of the further samples that the method `self` reads

Questions of a file bring their branches along: their lines have "seconds": null.  A line that is there is not written again.
Token ids are kept, so that the caches which are computed from a line are those of the live workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from psynth_jax.errors import ContextLengthError, DataError, InputError
from psynth_jax.evaluation.lines import Lines, Shard
from psynth_jax.evaluation.rows import DOES_NOT_FIT
from psynth_jax.evaluation.tasks import Question, Written
from psynth_jax.prompts import Role, question_messages
from psynth_jax.synthesis.pipeline import ParallelSynthesis
from psynth_jax.synthesis.sampling import SamplingOptions, checked_seed

Purpose: TypeAlias = Literal["questions", "others"]
OnWritten: TypeAlias = Callable[[int], None]
Key: TypeAlias = tuple[str, str]

NO_ROLE = Role("", "")


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """How workers write.

    workers: of each question.  roles: worker i gets role i, starting over after the last; nothing: all are asked the same.
    max_new_tokens: None: as many as the benchmark says.  temperature, top_p: as published, 0.6 and 0.95.
    seed: what a worker draws depends on it, on the question and on the worker's number.
    """

    workers: int = 3
    roles: Sequence[Role] = ()
    max_new_tokens: int | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `InputError` naming the option that is out of range."""
        if self.workers < 1:
            raise InputError(f"workers is {self.workers}; it must be at least 1")
        SamplingOptions(self.longest(1), self.temperature, self.top_p)
        checked_seed(self.seed)

    def longest(self, default: int) -> int:
        """Return how many tokens a worker may write, where the benchmark says `default`."""
        return default if self.max_new_tokens is None else self.max_new_tokens

    def settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Return what workers' texts depend on."""
        return {
            "workers": self.workers,
            "roles": [role.text for role in self.roles],
            "worker_max_new_tokens": self.longest(max_new_tokens),
            "worker_temperature": self.temperature,
            "worker_top_p": self.top_p,
            "worker_seed": self.seed,
        }


class Workers:
    """What is known of the workers of a run: who wrote what, and how long it took."""

    def __init__(self, folder: str | Path, purpose: Purpose, shard: Shard, *, private: bool = False):
        """Read what is in the folder.

        private: questions may not be shown in plain text; their lines have digests of them.

        Raises `DataError` naming a line that is damaged.
        """
        self._lines = Lines(Path(folder), purpose, shard)
        self.purpose = purpose
        self._private = private
        self.written: dict[Key, tuple[Written, ...]] = {}
        self._seconds: dict[Key, float] = {}
        for where, line in self._lines.read():
            self._take(where, line)

    def complete(self, questions: Sequence[Question], options: WorkerOptions) -> list[Question]:
        """Return questions with their workers' texts as branches; all of them must be there."""
        found = []
        for question in questions:
            workers = []
            for number, worker in enumerate(self.written[question.task, question.id]):
                prompt = _prompt(question, _role(options.roles, number))
                workers.append(dataclasses.replace(worker, prompt=prompt))
            found.append(question.written_by(workers))
        return found

    def left(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions that have no line."""
        return [question for question in questions if (question.task, question.id) not in self.written]

    def summary(self) -> dict[str, Any]:
        """Return how many texts were written, how they ended, their tokens, and tokens a second without compilation."""
        reasons: Counter[str] = Counter()
        tokens = empty = 0
        for group in self.written.values():
            for worker in group:
                reasons[worker.finish_reason] += 1
                tokens += len(worker.token_ids)
                empty += not worker.text.strip()
        seconds = sum(self._seconds.values())
        return {
            "texts": reasons.total(),
            "cut_off": reasons["length"],
            "does_not_fit": reasons[DOES_NOT_FIT],
            "empty": empty,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds if seconds > 0 else None,
        }

    def note(self, questions: Sequence[Question]) -> None:
        """Keep questions that bring their branches along, for who reads the folder."""
        with self._lines.open():
            for question in self.left(questions):
                given = [Written("", (), text, "given") for text in question.texts]
                self._append(question, given, None, 1)

    def write(
        self,
        synth: ParallelSynthesis,
        batches: Sequence[Sequence[Question]],
        options: WorkerOptions,
        max_new_tokens: int,
        on_written: OnWritten = lambda count: None,
    ) -> None:
        """Let workers write about the questions that have no line, a batch of questions at a time.

        Args:
          synth: the base model's.
          batches: of questions that have a `worker_prompt`.
          max_new_tokens: where the options do not say.
          on_written: called with the number of questions of every batch.

        Raises `InputError` when a line cannot be written.
        """
        with self._lines.open():
            for batch in batches:
                self._write_batch(synth, self.left(batch), options, max_new_tokens)
                on_written(len(batch))

    def _write_batch(
        self, synth: ParallelSynthesis, batch: Sequence[Question], options: WorkerOptions, max_new_tokens: int
    ) -> None:
        """Write about a batch.  Where it does not fit the context window it is halved."""
        if not batch:
            return
        roles = [_role(options.roles, worker) for worker in range(options.workers)]
        prompts, chats, seeds = [], [], []
        for question in batch:
            asked = [_prompt(question, role) for role in roles]
            prompts.append(asked)
            chats.append([question_messages(prompt) for prompt in asked])
            seeds.append(self._seeds(options, question))
        longest = options.longest(max_new_tokens)
        begin = synth.runner.now()
        try:
            made = synth.work(chats, longest, options.temperature, options.top_p, seed=seeds)
        except ContextLengthError:
            if len(batch) > 1:
                half = len(batch) // 2
                self._write_batch(synth, batch[:half], options, max_new_tokens)
                self._write_batch(synth, batch[half:], options, max_new_tokens)
                return
            nothing = [Written(prompt, (), "", DOES_NOT_FIT) for prompt in prompts[0]]
            self._append(batch[0], nothing, synth.runner.now() - begin, 1)
            return
        seconds = synth.runner.now() - begin
        for question, branches, asked in zip(batch, made.questions, prompts, strict=True):
            written = []
            for branch, prompt, role in zip(branches, asked, roles, strict=True):
                one = Written(prompt, branch.token_ids, branch.text, branch.finish_reason, role.name)
                written.append(one)
            self._append(question, written, seconds, len(batch))

    def _seeds(self, options: WorkerOptions, question: Question) -> list[int]:
        """Return a seed for every worker of a question, wherever the question stands among others."""
        seeds = []
        for worker in range(options.workers):
            name = f"{options.seed} {self.purpose} {worker} {question.task} {question.id}"
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
            seeds.append(int.from_bytes(digest[:4], "big"))
        return seeds

    def _append(self, question: Question, workers: Sequence[Written], seconds: float | None, batch: int) -> None:
        shown = []
        for worker in workers:
            prompt = self._shown(worker.prompt)
            shown.append(dataclasses.asdict(worker) | {"prompt": prompt, "tokens": len(worker.token_ids)})
        line = {
            "task": question.task,
            "id": question.id,
            "question": self._shown(question.query),
            "answers": list(question.answers),
            "seconds": seconds,
            "batch": batch,
            "workers": shown,
        }
        self._lines.append(line)
        self._take("", line)

    def _shown(self, asked: str) -> str:
        """Return what is kept of a question."""
        if not self._private:
            return asked
        return f"sha256 {hashlib.sha256(asked.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def _take(self, where: str, line: Any) -> None:
        try:
            workers = tuple(_written(worker) for worker in line["workers"])
            key = (_text(line["task"]), _text(line["id"]))
            if not workers:
                raise ValueError("there is no worker")
            if line["seconds"] is not None:
                self._seconds[key] = line["seconds"] / line["batch"]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            raise DataError(f"{where}: not a question with what its workers wrote; take the line out") from None
        self.written[key] = workers


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is something else")
    return value


def _written(value: Mapping[str, Any]) -> Written:
    names = ("prompt", "text", "finish_reason", "role")
    texts = {name: _text(value[name]) for name in names}
    return Written(token_ids=tuple(int(token) for token in value["token_ids"]), **texts)


def _role(roles: Sequence[Role], worker: int) -> Role:
    if not roles:
        return NO_ROLE
    return roles[worker % len(roles)]


def _prompt(question: Question, role: Role) -> str:
    """Return what a worker is asked.  The role comes last: all before it is shared by the workers of a question."""
    asked = str(getattr(question, "worker_prompt", "") or question.query)
    return f"{asked}\n\nYour part: {role.text}" if role.text else asked
