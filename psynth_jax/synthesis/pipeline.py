"""ParallelSynthesis, the public surface: workers write, a synthesizer reads their caches and answers."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from psynth_jax.axes import HostArray
from psynth_jax.branches import Branch, Branches, FinishReason, PositionMode, branch_view, offsets
from psynth_jax.cache import CACHE_DTYPES
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.adapters import load_adapter
from psynth_jax.data.sink import after_sink
from psynth_jax.errors import AdapterError, InputError, ModelMismatchError, listing
from psynth_jax.identity import short
from psynth_jax.mapper import Mapper, mapper_scalars
from psynth_jax.model import Model
from psynth_jax.nn.adapter import Lora
from psynth_jax.ops.branch_attention import Implementation, check_runs_here
from psynth_jax.prompts import baseline_messages, question_messages, synthesis_messages
from psynth_jax.sharding import DATA, shards
from psynth_jax.synthesis import inputs
from psynth_jax.synthesis.engine import Engine, slots_needed
from psynth_jax.synthesis.generate import OnToken, RowOutput, StreamedToken, generate
from psynth_jax.synthesis.placement import PlacedCaches, question_axes
from psynth_jax.synthesis.sampling import SamplingOptions, Stop, checked_seed
from psynth_jax.synthesis.step import Reader
from psynth_jax.synthesis.workers import WorkerPrompt, decode_workers, encode_workers, warn_of_copies


@dataclasses.dataclass(frozen=True)
class SynthesisResult:
    """An answer and what it took.

    ttft_s: seconds from branches ready to the first token on the host, tokenisation included, compilation not.
    prompt_tokens: prefilled for this answer.  cached_tokens: read from branches.  finish_reason: "stop" or "length".
    """

    text: str
    token_ids: list[int]
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    decode_tokens_per_s: float
    finish_reason: FinishReason


class ParallelSynthesis:
    """Workers and a synthesizer over one model.  Workers run the base; adapter and mapper are the synthesizer's.

    `work`, `encode`, `synthesize`, `synthesize_text` and `score` take one question or a list of them.  Wherever a text goes,
    a list of token ids goes too and is used as it is.
    """

    def __init__(
        self,
        model: Model,
        adapter: str | Path | Adapter | Lora | None = None,
        positions: PositionMode = "exact",
        implementation: Implementation = "auto",
        cache_dtype: str | None = None,
        mesh: Mesh | None = None,
    ):
        """Set up.

        Args:
          model: from `load_model`.
          adapter: directory or hub id of an adapter (ours, PEFT's, or the published release; see `load_adapter`), an
            `Adapter`, or a bare `Lora`; None is the identity mapper and no LoRA.
          positions: "exact": a branch is what the worker wrote, from position 0.  "reference_live": as the published code
            treats live workers (their last prompt token at -1, their last token missing), for parity only.
          implementation: of attention; see `branch_attention`.
          cache_dtype: of branch caches: one of `CACHE_DTYPES`; None is the model's.  "int8" (a scale per head and slot)
            takes about half the bytes of bfloat16.
          mesh: from `make_mesh`; the weights are moved to it.  None: where the model is.

        Raises:
          ConfigError: the mesh does not fit the model.
          InputError: unknown positions, implementation or cache_dtype.
          AdapterError, ModelMismatchError: the adapter cannot be used, or belongs to another model.
        """
        for name, value, allowed in (
            ("positions", positions, get_args(PositionMode)),
            ("cache_dtype", cache_dtype, (None, *CACHE_DTYPES)),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(str, allowed))}")
        check_runs_here(implementation)
        if isinstance(adapter, str | Path):
            adapter = load_adapter(adapter, model)
        if isinstance(adapter, Lora):
            adapter = Adapter(lora=adapter, mapper=None)
        if adapter is not None and not isinstance(adapter, Adapter):
            raise AdapterError(f"an adapter is a directory, an Adapter or a Lora, not {adapter!r}")
        if adapter is not None and adapter.lora is not None and (wrong := adapter.lora.misfits(model.config)):
            raise AdapterError(f"the adapter does not fit {model.name}: {listing(wrong)}")
        self._vocabulary = adapter.vocabulary if adapter is not None else None
        placed = model if mesh is None else model.on(mesh)
        writes = self._vocabulary or model.config.vocab_size
        self.model = placed if placed.decoder.vocabulary == writes else placed.writes(writes)
        self.positions: PositionMode = positions
        self.engine = Engine(self.model.decoder, implementation, cache_dtype)
        self._placed = PlacedCaches(self.model.mesh, model.config.kv_heads)
        lora = adapter.lora if adapter is not None else None
        self._lora = lora if lora is None or self.model.mesh is None else lora.on(self.model.mesh, model.config)
        self._mapper = self.engine.place(adapter.mapper) if adapter is not None else None
        self._sink = adapter.sink if adapter is not None else ()

    @property
    def adapter(self) -> Adapter:
        """The synthesizer's LoRA and mapper, to be saved."""
        return Adapter(lora=self._lora, mapper=self._mapper, vocabulary=self._vocabulary, sink=self._sink)

    def set_mapper(self, parameters: Mapping[str, HostArray]) -> None:
        """Use another mapper: hidden_kernel `[3, 32]`, hidden_bias `[32]`, out_kernel `[32, 4]`, out_bias `[4]`.

        Branches need not be made anew.  Raises `AdapterError` listing what is wrong with the arrays.
        """
        self._mapper = self.engine.place(Mapper.from_arrays(parameters))

    def mapper_scalars(self, branches: Branches) -> HostArray:
        """Return (aK, bK, aV, bV) of every layer and branch, `[L, B, W, 4]` float32; W is the largest count of the batch."""
        view = branch_view(self._questions_of(branches))
        before = 1 if self._sink else 0
        width = max(len(group) for group in branches.questions)
        scalars = mapper_scalars(self._mapper, view.span, view.valid, self.model.config.layers)
        return np.asarray(scalars)[:, :, before : before + width]

    def work(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | Sequence[Any] = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
    ) -> Branches:
        """Let workers write, all of them as one batch, and return their branches when the caches are computed.

        Args:
          prompts: one per worker (text, chat or token ids), or a list of such lists, one per question.
          max_new_tokens, temperature, top_p, top_k, stop: see `SamplingOptions`.
          seed: one number, from which every worker of a question draws its own; or numbers shaped like `prompts`.
          on_token: called with each `StreamedToken`.

        Raises:
          InputError: a prompt is empty, or an option out of range.
          ContextLengthError: a prompt and its answer would not fit the context window.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        groups, batched = inputs.by_question(prompts, "prompts")
        seeds = _worker_seeds(seed, groups, batched)
        workers = []
        for number, group in enumerate(groups):
            for index, prompt in enumerate(group):
                what = _name("prompt", number, index, batched)
                ids = inputs.prompt_ids(self.model, prompt, what, question_messages)
                inputs.check_window(self.model, 0, len(ids), max_new_tokens, what)
                workers.append(WorkerPrompt(number, index, ids, seeds[number][index]))
        warn_of_copies(workers, options)
        made = decode_workers(
            self.engine, workers, options, self.model.stop_ids, self.model.tokenizer, self.positions, on_token
        )
        return self._grouped(workers, made, batched)

    def encode(self, texts: Sequence[Any], prefixes: Sequence[Any] | None = None) -> Branches:
        """Compute the branches of fixed texts, as if workers had written them.

        Args:
          texts: one per branch (text or token ids; no special tokens are added), or a list of such lists, one per question.
          prefixes: what stands before each text and is not kept, shaped like `texts` (text, chat or token ids; None or
            empty: nothing).  An adapter's sink comes before that, where it does not begin with the sink.

        Raises:
          InputError: a text is empty, `prefixes` has another shape, or one is missing with "reference_live" positions.
        """
        groups, batched = inputs.by_question(texts, "texts")
        before = _shaped_like(groups, batched, prefixes, "prefixes")
        workers = []
        for number, group in enumerate(groups):
            for index, text in enumerate(group):
                what = _name("text", number, index, batched)
                given = inputs.plain_ids(self.model, text, what)
                prefix = before[number][index]
                missing = prefix is None or (inputs.is_prompt(prefix) and len(prefix) == 0)
                if missing and self.positions == "reference_live":
                    raise InputError(
                        f"{what} has no prefix: with reference_live positions a worker's prompt stands before it"
                    )
                prompt = () if missing else inputs.plain_ids(self.model, prefix, f"the prefix of {what}")
                prompt = after_sink(self._sink, prompt)
                inputs.check_window(self.model, 0, len(prompt) + len(given), 0, what)
                workers.append(WorkerPrompt(number, index, prompt, given=given))
        made = encode_workers(self.engine, workers, self.model.tokenizer, self.positions)
        branches = self._grouped(workers, made, batched)
        jax.block_until_ready([segment.cache for branch in made for segment in branch.segments])
        return branches

    def synthesize(
        self,
        question: Any,
        branches: Branches | Sequence[Branches] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
    ) -> Any:
        """Answer a question from branches; return a `SynthesisResult`, or a list of them for a list of questions.

        Args:
          question: text, chat or token ids, or a list of these.
          branches: of that question, or a batch (or list) with one group per question; None reads the question alone.
          max_new_tokens, temperature, top_p, top_k, seed, stop: see `SamplingOptions`.
          on_token: called with each `StreamedToken`.

        Raises:
          InputError: empty question, an empty branch, or another number of branch groups than questions.
          ModelMismatchError: the branches were made by another model.
          ContextLengthError: longest branch + prompt + max_new_tokens pass the context window.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        groups = self._checked_groups(branches)
        begin = time.perf_counter()
        questions, batched = inputs.as_questions(question)
        wording = question_messages if groups is None else synthesis_messages
        ids = [inputs.prompt_ids(self.model, item, "the question", wording) for item in questions]
        return self._answer(ids, groups, options, seed, on_token, begin, batched, base=False)

    def synthesize_text(
        self,
        question: Any,
        texts: Sequence[Any],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
    ) -> Any:
        """Answer from the workers' texts instead of their caches: the baseline.  The base model, everything prefilled.

        Texts are pasted before the same question; token ids (of texts and question) are put one after the other.  Arguments,
        result and errors as for `synthesize`.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        begin = time.perf_counter()
        questions, batched = inputs.as_questions(question)
        groups, _ = inputs.by_question(texts, "texts")
        if len(groups) != len(questions):
            raise InputError(f"{len(questions)} questions and texts for {len(groups)} of them")
        ids = [self._pasted(item, group) for item, group in zip(questions, groups, strict=True)]
        return self._answer(ids, None, options, seed, on_token, begin, batched, base=True)

    def score(self, prompt: Any, target: Any, branches: Branches | Sequence[Branches] | None = None) -> Any:
        """Return the log-probability of every target token after the prompt, float32 `[len(target)]`, teacher forced.

        Prompt and target are tokenised apart; a list of prompts takes a list of targets and gives a list.  Errors as for
        `synthesize`.
        """
        groups = self._checked_groups(branches)
        questions, batched = inputs.as_questions(prompt)
        targets = target if batched else [target]
        if not isinstance(targets, list | tuple):
            raise InputError("a list of prompts takes a list of targets")
        if len(targets) != len(questions):
            raise InputError(f"{len(questions)} prompts and {len(targets)} targets")
        wording = question_messages if groups is None else synthesis_messages
        before = [inputs.prompt_ids(self.model, item, "the prompt", wording) for item in questions]
        after = [inputs.plain_ids(self.model, item, "the target") for item in targets]
        reader, offset, row_axes = self._reader(groups, len(questions))
        for start, first, last in zip(offset, before, after, strict=True):
            inputs.check_window(self.model, int(start), len(first) + len(last), 0, "prompt and target")
        rows = [(*first, *last) for first, last in zip(before, after, strict=True)]
        cache = self.engine.allocate(len(rows), slots_needed(0, max(len(row) for row in rows), 0), row_axes)
        found = self.engine.score(reader, rows, cache, offset)
        scores = [logp[len(first) - 1 :] for logp, first in zip(found, before, strict=True)]
        return scores if batched else scores[0]

    def session(self, branches: Branches | None = None) -> Any:
        """Start a conversation over the branches of one question; see `Session`."""
        from psynth_jax.synthesis.session import Session

        return Session(self, branches)

    def _answer(
        self,
        ids: Sequence[tuple[int, ...]],
        groups: Sequence[Sequence[Branch]] | None,
        options: SamplingOptions,
        seed: int,
        on_token: OnToken | None,
        begin: float,
        batched: bool,
        *,
        base: bool,
    ) -> Any:
        reader, offset, row_axes = self._reader(groups, len(ids), base=base)
        what = "the question behind the pasted texts" if base else "the question"
        for start, prompt in zip(offset, ids, strict=True):
            inputs.check_window(self.model, int(start), len(prompt), options.max_new_tokens, what)
        compiled = self.engine.compile_seconds
        outputs = [RowOutput(options, self.model.stop_ids, self.model.tokenizer) for _ in ids]
        seeds = [(checked_seed(seed), 0)] * len(ids)
        longest = max(len(prompt) for prompt in ids)
        cache = self.engine.allocate(len(ids), slots_needed(0, longest, options.max_new_tokens), row_axes)
        report = None if on_token is None else _reporter(on_token)
        before = time.perf_counter() - begin - (self.engine.compile_seconds - compiled)
        nothing = np.zeros(len(ids), np.int32)
        run = generate(
            self.engine,
            reader,
            ids,
            outputs,
            cache,
            nothing,
            offset,
            options,
            seeds,
            report,
            feed_last=False,
        )
        read = [sum(branch.span for branch in group) for group in groups] if groups is not None else [0] * len(ids)
        results = [
            result_of(output, before + run.first_token_s, seconds, len(prompt), cached)
            for output, seconds, prompt, cached in zip(outputs, run.decode_s.tolist(), ids, read, strict=True)
        ]
        return results if batched else results[0]

    def _reader(
        self, groups: Sequence[Sequence[Branch]] | None, rows: int, *, base: bool = False
    ) -> tuple[Reader, HostArray, tuple[str, ...]]:
        """Return what is read, the position at which each of `rows` questions starts, and what its rows are cut over."""
        if groups is None:
            row_axes = question_axes(None, rows, self.engine.mesh)
            return Reader(lora=None if base else self._lora), np.zeros(rows, np.int32), row_axes
        if len(groups) != rows:
            raise InputError(f"{rows} questions and branches for {len(groups)} of them")
        groups = self._placed.of(groups)
        view = self.engine.place(branch_view(groups))
        row_axes = question_axes(groups, rows, self.engine.mesh)
        return Reader(mapper=self._mapper, lora=self._lora, view=view), offsets(groups), row_axes

    def _checked_groups(self, branches: Any) -> Sequence[Sequence[Branch]] | None:
        if branches is None:
            return None
        if isinstance(branches, str) or not isinstance(branches, Branches | Sequence):
            raise InputError(f"branches must be what `work` or `encode` returned, or a list of these, not {branches!r}")
        return self._questions_of(branches if isinstance(branches, Branches) else Branches.batch(branches))

    def _questions_of(self, branches: Branches) -> Sequence[Sequence[Branch]]:
        """Return each question's branches, behind the sink.  Raises when another model made them, or one is empty."""
        if not self.model.identity.matches(branches.fingerprint):
            mine, theirs = short(self.model.fingerprint), short(branches.fingerprint)
            raise ModelMismatchError(
                f"these branches were made by another model than {self.model.name}: by weights {theirs}, not {mine}"
            )
        for number, group in enumerate(branches.questions):
            if not group:
                raise InputError("there is no branch to read: give at least one, or none at all (branches=None)")
            for index, branch in enumerate(group):
                if not branch.segments:
                    what = _name("branch", number, index, branches.batched)
                    raise InputError(
                        f"{what} is empty: its worker stopped at once; select the others, as in branches[[0, 2]]"
                    )
        if not self._sink:
            return branches.questions
        sinks, count = self._sinks, len(branches.questions)
        return [[sinks[number * len(sinks) // count], *group] for number, group in enumerate(branches.questions)]

    @functools.cached_property
    def _sinks(self) -> list[Branch]:
        """The adapter's sink as a branch, one on every part of `data`: what it says is the same for all questions."""
        parts = range(shards(self.model.mesh, (DATA,)))
        return encode_workers(
            self.engine, [WorkerPrompt(part, 0, (), given=self._sink) for part in parts], self.model.tokenizer, "exact"
        )

    def _grouped(self, workers: Sequence[WorkerPrompt], made: Sequence[Branch], batched: bool) -> Branches:
        questions: list[list[Branch]] = [[] for _ in range(workers[-1].question + 1)]
        for worker, branch in zip(workers, made, strict=True):
            questions[worker.question].append(branch)
        return Branches(questions, self.model.fingerprint, batched=batched)

    def _pasted(self, question: Any, texts: Sequence[Any]) -> tuple[int, ...]:
        if isinstance(question, str) and all(isinstance(text, str) for text in texts):
            for index, text in enumerate(texts):
                if not text.strip():
                    raise InputError(f"text {index + 1} is empty")
            return inputs.prompt_ids(self.model, question, "the question", lambda asked: baseline_messages(asked, texts))
        ids = [inputs.plain_ids(self.model, text, f"text {index + 1}") for index, text in enumerate(texts)]
        tail = inputs.prompt_ids(self.model, question, "the question", synthesis_messages)
        return (*(token for text in ids for token in text), *tail)


def result_of(output: RowOutput, ttft_s: float, decode_s: float, prompt_tokens: int, cached_tokens: int) -> SynthesisResult:
    """Describe a finished row."""
    later = len(output.token_ids) - 1
    rate = later / decode_s if later > 0 and decode_s > 0 else 0.0
    reason = output.finish_reason or "length"
    return SynthesisResult(output.text, output.token_ids, ttft_s, prompt_tokens, cached_tokens, rate, reason)


def _reporter(on_token: OnToken) -> Any:
    return lambda row, piece, token: on_token(StreamedToken(piece, row, None, token))


def _name(kind: str, question: int, index: int, batched: bool) -> str:
    return f"{kind} {index + 1} of question {question + 1}" if batched else f"{kind} {index + 1}"


def _shaped_like(groups: list[list[Any]], batched: bool, given: Sequence[Any] | None, what: str) -> list[list[Any]]:
    """Return `given` grouped like `groups`; None everywhere when nothing is given."""
    if given is None:
        return [[None] * len(group) for group in groups]
    nested = given if batched else [given]
    counts = [len(group) for group in groups]
    if (
        not isinstance(nested, list | tuple)
        or not all(isinstance(group, list | tuple) for group in nested)
        or [len(group) for group in nested] != counts
    ):
        raise InputError(f"{what} must have {f'{counts} entries, by question' if batched else f'{counts[0]} entries'}")
    return [list(group) for group in nested]


def _worker_seeds(seed: int | Sequence[Any], groups: list[list[Any]], batched: bool) -> list[list[tuple[int, int]]]:
    """Return each worker's (seed, number); a seed given for a worker alone does not depend on its number."""
    if not isinstance(seed, list | tuple):
        return [[(checked_seed(seed), index) for index in range(len(group))] for group in groups]
    return [[(checked_seed(value), 0) for value in group] for group in _shaped_like(groups, batched, seed, "seed")]
