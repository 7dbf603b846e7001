"""ParallelSynthesis, the public surface: workers write, a synthesizer reads their caches and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jax.sharding import Mesh

from psynth_jax.adapter.sink import after_sink
from psynth_jax.axes import HostArray
from psynth_jax.branch import Branch, PositionMode
from psynth_jax.branches import Branches
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.engine.sequences import GREEDY, Listener, SequenceSampling, TokenSequence
from psynth_jax.engine.step import Conditioning
from psynth_jax.errors import InputError, shown
from psynth_jax.mapper import Mapper, mapper_scalars
from psynth_jax.model import Model
from psynth_jax.nn.adapter import Lora
from psynth_jax.ops.branch_attention import Implementation, check_runs_here
from psynth_jax.prompts import question_messages, synthesis_messages
from psynth_jax.synthesis import arguments, inputs
from psynth_jax.synthesis.gate import Gate, gated_answers, texts_of
from psynth_jax.synthesis.inputs import Prompt, Text
from psynth_jax.synthesis.outputs import Cached, OnToken, RowOutput, tell_all
from psynth_jax.synthesis.recompute import checked_recompute, recomputed
from psynth_jax.synthesis.result import SynthesisResult, result_of
from psynth_jax.synthesis.runner import Asked, Runner, asked_of, not_finite, positions_of
from psynth_jax.synthesis.sampling import SamplingOptions, Stop, checked_seed, sampling_of
from psynth_jax.synthesis.session import Session
from psynth_jax.synthesis.sink_branches import SinkBranches
from psynth_jax.synthesis.workers import WorkerPrompt, encode_texts, generate_workers, grouped, warn_of_copies
from psynth_jax.template_variables import TemplateVariables

__all__ = ["ParallelSynthesis", "SynthesisResult"]


class ParallelSynthesis:
    """Workers and a synthesizer over one model.  Workers run the base; adapter and mapper are the synthesizer's.

    `work`, `encode`, `synthesize`, `synthesize_text` and `score` take one question or a list of them.  Wherever a text goes,
    a list of token ids goes too and is used as it is.

    Threads may share one, and may call it at the same time: calls share weights, compiled steps and
    the pool of slots alone, and what a result says of times is that call's.  `set_mapper` changes calls that begin after it.

    template: the template variables of every chat that it renders.
    """

    def __init__(
        self,
        model: Model,
        adapter: str | Path | Adapter | Lora | None = None,
        positions: PositionMode = "exact",
        implementation: Implementation = "auto",
        cache_dtype: str | None = None,
        mesh: Mesh | None = None,
        template: TemplateVariables | None = None,
        gate: Gate | float | None = None,
        pool_tokens: int | None = None,
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
          template: variables that the chat template reads besides the messages, as in {"enable_thinking": False}; sessions
            have them too.  None: those that the adapter was trained with, or else those of the model's tokenizer.  Others
            than the adapter's are used as given, with a warning.
          gate: when `synthesize` takes an answer from branches, and when it asks the texts instead; a number is the
            threshold of a `Gate`.  None: always from branches.
          pool_tokens: slots of a pool of its own, which never grows; None: the pool of all that
            read this model.

        Raises:
          ConfigError: the mesh does not fit the model.
          InputError: a model that is none, unknown positions, implementation or cache_dtype, or template variables that
            the model's template does not read.
          AdapterError, ModelMismatchError: the adapter cannot be used, or belongs to another model.
        """
        arguments.check_arguments(model, positions, cache_dtype, mesh, pool_tokens)
        check_runs_here(implementation)
        adapter = arguments.checked_adapter(adapter, model)
        self._adapter_template = None if adapter is None else adapter.template
        model = arguments.with_template(model, template, self._adapter_template)
        self._vocabulary = adapter.vocabulary if adapter is not None else None
        self.model = model if mesh is None else model.on(mesh)
        self.positions: PositionMode = positions
        vocabulary = self._vocabulary or model.config.vocab_size
        self.runner = Runner(self.model, implementation, cache_dtype, vocabulary, pool_tokens)
        self._lora = None if adapter is None else adapter.lora
        if adapter is not None:
            placed = None if self._lora is None else self.model.decoder.placed(self._lora)
            self.runner.condition(Conditioning(self.runner.placed(adapter.mapper), placed))
        self.sink = SinkBranches(() if adapter is None else adapter.sink, self.model, self.runner)
        self.gate = arguments.checked_gate(gate, model, lambda: self.adapter.digest)

    def __repr__(self) -> str:
        """Show the model, and what makes a synthesizer of it."""
        parts = " and ".join(self.runner.conditioning.parts) or "no adapter"
        return f"ParallelSynthesis({self.model!r}, {parts}, {self.positions} positions)"

    @property
    def template(self) -> TemplateVariables:
        """The template variables of every chat that it renders."""
        tokenizer = self.model.tokenizer
        return {} if tokenizer is None else tokenizer.template_variables

    @property
    def adapter(self) -> Adapter:
        """The synthesizer's LoRA and mapper, to be saved, with the template variables that it was trained with."""
        template = self._adapter_template
        if template is None and self.template:
            template = self.template
        return Adapter(self._lora, self.runner.conditioning.mapper, self._vocabulary, self.sink.ids, template)

    def set_mapper(self, parameters: Mapping[str, HostArray]) -> None:
        """Use another mapper: hidden_kernel `[3, 32]`, hidden_bias `[32]`, out_kernel `[32, 4]`, out_bias `[4]`.

        Branches need not be made again.  Raises `AdapterError` listing what is wrong with the arrays.
        """
        mapper = self.runner.placed(Mapper.from_arrays(parameters))
        self.runner.condition(Conditioning(mapper, self.runner.conditioning.lora))

    def mapper_scalars(self, branches: Branches) -> HostArray:
        """Return (aK, bK, aV, bV) of every layer and branch, `[L, B, W, 4]` float32; W is the largest count of the batch."""
        if not isinstance(branches, Branches):
            raise InputError(f"branches must be what `work` or `encode` returned, not {shown(branches)}")
        groups = self._questions_of(branches)
        width = max(len(group) for group in groups)
        span, valid = np.zeros((len(groups), width), np.int32), np.zeros((len(groups), width), bool)
        for number, group in enumerate(groups):
            span[number, : len(group)] = [branch.span for branch in group]
            valid[number, : len(group)] = True
        scalars = mapper_scalars(self.runner.conditioning.mapper, span, valid, self.model.config.layers)
        return np.asarray(scalars)[:, :, self.sink.count :]

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
          NotFiniteError: a worker's logits are NaN or infinite.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        inputs.check_callback(on_token)
        groups, batched = inputs.by_question(prompts, "prompts")
        seeds = arguments.worker_seeds(seed, groups, batched)
        workers = []
        for number, group in enumerate(groups):
            for index, prompt in enumerate(group):
                what = inputs.numbered("prompt", number, index, batched)
                ids = inputs.prompt_ids(self.model, prompt, what, question_messages)
                inputs.check_window(self.model, 0, len(ids), options.max_new_tokens, what)
                workers.append(WorkerPrompt(number, index, ids, seeds[number][index]))
        warn_of_copies(workers, options)
        made = generate_workers(
            self.runner, workers, options, self.model.stop_ids, self.model.tokenizer, self.positions, on_token
        )
        return grouped(workers, made, self.model.fingerprint, batched=batched)

    def encode(self, texts: Sequence[Any], prefixes: Sequence[Any] | None = None) -> Branches:
        """Compute the branches of fixed texts, as if workers had written them.

        Args:
          texts: one per branch (text or token ids; no special tokens are added), or a list of such lists, one per question.
          prefixes: what stands before each text and is not kept, shaped like `texts` (text, chat or token ids; None or
            empty: nothing).  An adapter's sink comes before that, where it does not begin with the sink.

        Raises:
          InputError: a text is empty, `prefixes` has another shape, or one is missing with "reference_live" positions.
          NotFiniteError: the cache of a text is NaN or infinite.
        """
        groups, batched = inputs.by_question(texts, "texts")
        before = arguments.shaped_like(groups, batched, prefixes, "prefixes")
        workers = []
        for number, group in enumerate(groups):
            for index, text in enumerate(group):
                what = inputs.numbered("text", number, index, batched)
                given = inputs.plain_ids(self.model, text, what)
                prefix = before[number][index]
                missing = prefix is None or (inputs.is_prompt(prefix) and len(prefix) == 0)
                if missing and self.positions == "reference_live":
                    raise InputError(
                        f"{what} has no prefix: with reference_live positions a worker's prompt stands before it"
                    )
                prompt = () if missing else inputs.plain_ids(self.model, prefix, f"the prefix of {what}")
                prompt = after_sink(self.sink.ids, prompt)
                inputs.check_window(self.model, 0, len(prompt) + len(given), 0, what)
                workers.append(WorkerPrompt(number, index, prompt, given=given))
        made = encode_texts(self.runner, workers, self.model.tokenizer, self.positions)
        return grouped(workers, made, self.model.fingerprint, batched=batched)

    @overload  # a text is a sequence of texts, too: the first signature that fits holds
    def synthesize(  # type: ignore[overload-overlap]
        self,
        question: Prompt,
        branches: Branches | Sequence[Branches] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
        *,
        recompute: int = 0,
    ) -> SynthesisResult: ...

    @overload
    def synthesize(
        self,
        question: Sequence[Prompt],
        branches: Branches | Sequence[Branches] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
        *,
        recompute: int = 0,
    ) -> list[SynthesisResult]: ...

    def synthesize(
        self,
        question: Prompt | Sequence[Prompt],
        branches: Branches | Sequence[Branches] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
        *,
        recompute: int = 0,
    ) -> SynthesisResult | list[SynthesisResult]:
        """Answer a question from branches; return a `SynthesisResult`, or a list of them for a list of questions.

        Args:
          question: text, chat or token ids, or a list of these.
          branches: of that question, or a batch (or list) with one group per question; None reads the question alone.
          max_new_tokens, temperature, top_p, top_k, seed, stop: see `SamplingOptions`.
          on_token: called with each `StreamedToken`.
          recompute: tokens at the begin of every branch that are encoded again, behind all branches and before the
            question, instead of being read from the cache; see recompute.py.

        Raises:
          InputError: empty question, an empty branch, or another number of branch groups than questions.
          ModelMismatchError: the branches were made by another model.
          ContextLengthError: longest branch + prompt + max_new_tokens pass the context window.
          NotFiniteError: logits are NaN or infinite.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        inputs.check_callback(on_token)
        checked_recompute(recompute, self.positions, branches)
        if self.gate is None or branches is None:
            return self._from_branches(question, branches, options, seed, on_token, recompute)
        questions, batched = inputs.as_questions(question)
        self.checked_groups(branches)
        texts = texts_of(branches)

        def from_branches(report: OnToken | None) -> list[SynthesisResult]:
            return self._from_branches(questions, branches, options, seed, report, recompute)  # type: ignore[return-value]

        def from_texts(rows: Sequence[int], report: OnToken | None) -> list[SynthesisResult]:
            asked = [questions[row] for row in rows]
            read = [texts[row] for row in rows]
            return self._from_texts(asked, read, options, seed, report)  # type: ignore[return-value]

        results = gated_answers(self.gate, len(questions), from_branches, from_texts, on_token)
        return results if batched else results[0]

    def _from_branches(
        self,
        question: Any,
        branches: Any,
        options: SamplingOptions,
        seed: int,
        on_token: OnToken | None,
        recompute: int,
    ) -> SynthesisResult | list[SynthesisResult]:
        """Answer from caches, whatever a gate would say."""
        groups = self.checked_groups(branches)
        begin = self.runner.now()
        questions, batched = inputs.as_questions(question)
        wording = question_messages if groups is None else synthesis_messages
        ids = [inputs.prompt_ids(self.model, item, "the question", wording) for item in questions]
        if groups is not None:
            ids, groups = recomputed(ids, groups, recompute, sinks=self.sink.count)
        return self._answer(ids, groups, options, seed, on_token, begin, batched, base=False)

    @overload  # a text is a sequence of texts, too: the first signature that fits holds
    def synthesize_text(  # type: ignore[overload-overlap]
        self,
        question: Prompt,
        texts: Sequence[Text],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
    ) -> SynthesisResult: ...

    @overload
    def synthesize_text(
        self,
        question: Sequence[Prompt],
        texts: Sequence[Sequence[Text]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
    ) -> list[SynthesisResult]: ...

    def synthesize_text(
        self,
        question: Prompt | Sequence[Prompt],
        texts: Sequence[Text] | Sequence[Sequence[Text]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
    ) -> SynthesisResult | list[SynthesisResult]:
        """Answer from the workers' texts instead of their caches: the baseline.  The base model, everything prefilled.

        Texts are pasted before the same question; token ids (of texts and question) are put one after the other.  Arguments,
        result and errors as for `synthesize`.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        inputs.check_callback(on_token)
        return self._from_texts(question, texts, options, seed, on_token)

    def _from_texts(
        self, question: Any, texts: Any, options: SamplingOptions, seed: int, on_token: OnToken | None
    ) -> SynthesisResult | list[SynthesisResult]:
        begin = self.runner.now()
        questions, batched = inputs.as_questions(question)
        groups, _ = inputs.by_question(texts, "texts")
        if len(groups) != len(questions):
            raise InputError(f"{len(questions)} questions and texts for {len(groups)} of them")
        ids = [inputs.concatenated_ids(self.model, item, group) for item, group in zip(questions, groups, strict=True)]
        return self._answer(ids, None, options, seed, on_token, begin, batched, base=True)

    @overload  # a text is a sequence of texts, too: the first signature that fits holds
    def score(  # type: ignore[overload-overlap]
        self,
        prompt: Prompt,
        target: Text,
        branches: Branches | Sequence[Branches] | None = None,
        recompute: int = 0,
    ) -> HostArray: ...

    @overload
    def score(
        self,
        prompt: Sequence[Prompt],
        target: Sequence[Text],
        branches: Branches | Sequence[Branches] | None = None,
        recompute: int = 0,
    ) -> list[HostArray]: ...

    def score(
        self,
        prompt: Prompt | Sequence[Prompt],
        target: Text | Sequence[Text],
        branches: Branches | Sequence[Branches] | None = None,
        recompute: int = 0,
    ) -> HostArray | list[HostArray]:
        """Return the log-probability of every target token after the prompt, float32 `[len(target)]`, teacher forced.

        Prompt and target are tokenised apart; a list of prompts takes a list of targets and gives a list.  `recompute`
        and errors as for `synthesize`.
        """
        checked_recompute(recompute, self.positions, branches)
        groups = self.checked_groups(branches)
        questions, batched = inputs.as_questions(prompt)
        targets = target if batched else [target]
        if not isinstance(targets, list | tuple):
            raise InputError("a list of prompts takes a list of targets")
        if len(targets) != len(questions):
            raise InputError(f"{len(questions)} prompts and {len(targets)} targets")
        wording = question_messages if groups is None else synthesis_messages
        before = [inputs.prompt_ids(self.model, item, "the prompt", wording) for item in questions]
        after = [inputs.plain_ids(self.model, item, "the target") for item in targets]
        if groups is not None:
            before, groups = recomputed(before, groups, recompute, sinks=self.sink.count)
        for position, first, last in zip(positions_of(groups, len(questions)), before, after, strict=True):
            inputs.check_window(self.model, position, len(first) + len(last), 0, "prompt and target")
        asked = asked_of(self.runner, groups, len(questions))
        sequences = []
        for question, first, last in zip(asked, before, after, strict=True):
            row = (*first, *last)
            sequences.append(self._sequence(question, row[:-1], 0, Cached(self.runner, "a prompt"), targets=row[1:]))
        self.runner.run(sequences)
        found = [np.concatenate(sequence.scores) for sequence in sequences]
        for number, logp in enumerate(found, start=1):
            if not np.isfinite(logp).all():
                which = f" {number}" if batched else ""
                raise not_finite(self.runner, f"logits of prompt{which} and its target")
        scores = [logp[len(first) - 1 :] for logp, first in zip(found, before, strict=True)]
        return scores if batched else scores[0]

    def session(self, branches: Branches | None = None) -> Session:
        """Start a conversation over the branches of one question; see `Session`.  It reads caches, whatever a gate says."""
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
    ) -> SynthesisResult | list[SynthesisResult]:
        what = "the question behind the pasted texts" if base else "the question"
        for position, prompt in zip(positions_of(groups, len(ids)), ids, strict=True):
            inputs.check_window(self.model, position, len(prompt), options.max_new_tokens, what)
        sampling = sampling_of(options, (checked_seed(seed), 0))
        outputs = []
        for number in range(len(ids)):
            name = f"the answer to question {number + 1}" if len(ids) > 1 else "the answer"
            report = None if on_token is None else arguments.reporter(on_token, number)
            output = RowOutput(options, self.model.stop_ids, self.model.tokenizer, self.runner, name, report=report)
            outputs.append(output)
        asked = asked_of(self.runner, groups, len(ids))
        sequences = []
        for question, prompt, output in zip(asked, ids, outputs, strict=True):
            sequences.append(self._sequence(question, prompt, options.max_new_tokens, output, sampling, base=base))
        self.runner.run(sequences, lambda: tell_all(outputs))
        results = []
        for question, output, prompt, sequence in zip(asked, outputs, ids, sequences, strict=True):
            shared = sequence.shared_tokens
            results.append(result_of(output, begin, len(prompt), question.cached_tokens, shared))
        return results if batched else results[0]

    def _sequence(
        self,
        question: Asked,
        prompt: Sequence[int],
        new_tokens: int,
        listener: Listener,
        sampling: SequenceSampling = GREEDY,
        *,
        base: bool = False,
        targets: Sequence[int] | None = None,
    ) -> TokenSequence:
        """Return the sequence that answers a question; `base`: without LoRA and mapper; targets: to be scored."""
        return self.runner.sequence(
            prompt,
            new_tokens,
            listener,
            question.block,
            draws=None if targets is not None else new_tokens,
            sampling=sampling,
            branches=question.branches,
            kept=question.kept,
            position=question.position,
            scale=0.0 if base else 1.0,
            targets=targets,
        )

    def checked_groups(self, branches: Any) -> Sequence[Sequence[Branch]] | None:
        """Return each question's branches, behind the sink; None where there are none.

        Raises `InputError` for what is no branches, or for empty ones, and `ModelMismatchError` for
        another model's.
        """
        if branches is None:
            return None
        if isinstance(branches, str) or not isinstance(branches, Branches | Sequence):
            raise InputError(f"branches must be what `work` or `encode` returned, or a list of these, not {shown(branches)}")
        return self._questions_of(branches if isinstance(branches, Branches) else Branches.batch(branches))

    def _questions_of(self, branches: Branches) -> Sequence[Sequence[Branch]]:
        """Return each question's branches, behind the sink.  Raises as `inputs.check_branches` does."""
        inputs.check_branches(self.model, branches)
        return self.sink.before(branches.questions)
