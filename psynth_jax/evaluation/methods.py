"""Ways of answering a question, by name.  Each is a function over a `ParallelSynthesis`, made for a batch of questions.

    name            reads                         weights
    text            the texts, concatenated       the base model
    text-lora       the texts, concatenated       a LoRA that was trained on concatenated texts
    branches        its branches                  the adapter: LoRA and mapper
    recompute:K     its branches, the first K tokens of each encoded again      the adapter
    gated           its branches, or the texts where the gate doubts the answer the adapter, or the base model
    identity        its branches                  the base model, no mapper
    question        nothing: the same prompt      the adapter's LoRA
    wrong-branches  those of another question     the adapter
    self            other samples of its own      the adapter; the base model wrote the samples
    vote            nothing: no model is asked    none: the workers' own answers, the most frequent one
    best-worker     nothing: no model is asked    none: a worker's answer that is right, if there is one

`text-lora` is the yardstick for `branches`: as much training, the same examples, everything prefilled.  `identity` says what
the adapter adds; `question` and `wrong-branches` say whether the branches are read at all, and not only guessed around.
`vote` is what the workers reach without a synthesizer, `best-worker` the most that choosing among them could reach; `self`
tells how much comes from a second look at the question.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from psynth_jax.branches import Branches
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.adapters import load_adapter
from psynth_jax.errors import InputError, shown
from psynth_jax.evaluation.second_look import own_branches
from psynth_jax.evaluation.tasks import Question, Task
from psynth_jax.evaluation.voting import best_worker, elected
from psynth_jax.model import Model
from psynth_jax.prompts import baseline_messages, question_messages, read_as, synthesis_messages
from psynth_jax.synthesis.arguments import checked_gate
from psynth_jax.synthesis.gate import Gate
from psynth_jax.synthesis.inputs import tokenizer_of
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
from psynth_jax.template_variables import TemplateVariables

Weights: TypeAlias = Literal["base", "adapter", "text_adapter", "gated"]
Answer: TypeAlias = Callable[[ParallelSynthesis, Sequence[Question], Mapping[str, Any]], list[SynthesisResult]]

RECOMPUTE = "recompute:"


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of answering.

    weights: which synthesizer it runs.  answer: takes that one, questions, and sampling options of `synthesize`.
    chosen: of a method that asks no model, which text of the workers is its answer.
    of_another: the questions come with the branches of other questions, see wrong_branches.py.
    draws: it draws random numbers at any temperature.
    """

    name: str
    weights: Weights
    answer: Answer | None
    chosen: Callable[[Task, Question], str] | None = None
    of_another: bool = False
    draws: bool = False


def _from_text(synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]) -> list[SynthesisResult]:
    queries = [question.query for question in questions]
    return synth.synthesize_text(queries, [_texts(question) for question in questions], **options)


def _from_text_with_lora(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    chats = [baseline_messages(question.query, _texts(question)) for question in questions]
    return synth.synthesize(chats, None, **options)


def _texts(question: Question) -> list[str]:
    """Return the texts to be read; a file's are not blank, a live worker's may be."""
    if not question.workers:
        return question.texts
    return [read_as(text) for text in question.texts]


def _from_branches(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    queries = [question.query for question in questions]
    return synth.synthesize(queries, encoded(synth, questions), **options)


def encoded(synth: ParallelSynthesis, questions: Sequence[Question]) -> Branches:
    """Compute the caches that a synthesizer reads: those of texts, or those that live workers had."""
    encode = tokenizer_of(synth.model).encode  # a prefix may be blank, which no prompt may be
    # A branch holds at least one token: of an answer that ends at once the end token is all that was written.
    nothing = sorted(synth.model.stop_ids)[:1]
    texts: list[list[Any]] = []
    prefixes: list[list[Any]] = []
    for question in questions:
        if question.workers:
            texts.append([worker.token_ids or nothing for worker in question.workers])
            prefixes.append([question_messages(worker.prompt) for worker in question.workers])
        else:
            texts.append(list(question.texts))
            prefixes.append([encode(prefix) for prefix in question.prefixes])
    return synth.encode(texts, prefixes)


def _recomputing(count: int) -> Answer:
    def answer(synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]) -> list[SynthesisResult]:
        return _from_branches(synth, questions, {**options, "recompute": count})

    return answer


def _from_nothing(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    """Answer the prompt that goes with branches, word for word: nothing but the branches is missing."""
    return synth.synthesize([synthesis_messages(question.query) for question in questions], None, **options)


def _from_itself(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    """Answer from samples of the base model's own: those that were written live, or else one to the question alone."""
    if questions[0].workers:
        return _from_branches(synth, questions, options)
    branches = own_branches(synth, questions, options["max_new_tokens"], options["seed"])
    return synth.synthesize([question.query for question in questions], branches, **options)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("text", "base", _from_text),
        Method("text-lora", "text_adapter", _from_text_with_lora),
        Method("branches", "adapter", _from_branches),
        Method("gated", "gated", _from_branches),
        Method("identity", "base", _from_branches),
        Method("question", "adapter", _from_nothing),
        Method("wrong-branches", "adapter", _from_branches, of_another=True),
        Method("vote", "base", None, elected),
        Method("best-worker", "base", None, best_worker),
        Method("self", "adapter", _from_itself, draws=True),
    )
}
NAMES = ", ".join([*METHODS, f"{RECOMPUTE}K"])


def method(name: str) -> Method:
    """Return a method by name.  Raises `InputError` for an unknown one, naming all."""
    if name in METHODS:
        return METHODS[name]
    count = name.removeprefix(RECOMPUTE)
    if name.startswith(RECOMPUTE) and count.isdecimal() and len(count) < 10:
        return Method(f"{RECOMPUTE}{int(count)}", "adapter", _recomputing(int(count)))
    if name.startswith(RECOMPUTE):
        raise InputError(f"{shown(name)}: behind the colon goes a number of tokens, as in {RECOMPUTE}16")
    raise InputError(f"there is no method {name!r}: choose from {NAMES}")


def in_order(name: str) -> tuple[int, int]:
    """Return where a method stands among all: in the order of `METHODS`, `recompute:K` behind `branches`."""
    if name in METHODS:
        return list(METHODS).index(name), 0
    count = name.removeprefix(RECOMPUTE)
    if name.startswith(RECOMPUTE) and count.isdecimal():
        return in_order("branches")[0], int(count) + 1
    return len(METHODS), 0  # answers that were given


def choose(names: Sequence[str], given: Set[Weights]) -> tuple[Method, ...]:
    """Return methods by name, in the order of `in_order`.

    Args:
      names: no name twice.
      given: the adapters that there are, and "gated" for a gate.

    Raises `InputError` for an unknown name, one that comes twice, none at all, or methods whose adapter is not given.
    """
    if not names:
        raise InputError(f"no method is given: choose from {NAMES}")
    chosen = [method(name) for name in names]
    if len({each.name for each in chosen}) < len(chosen):
        raise InputError(f"a method is named twice: {', '.join(names)}")
    chosen.sort(key=lambda each: in_order(each.name))
    wrong = []
    for kind, wanted in _WANTED.items():
        lacking = [each.name for each in chosen if each.weights == kind and kind not in given]
        if lacking:
            wrong.append(f"{', '.join(lacking)} needs {wanted}")
    if wrong:
        raise InputError(f"{'; '.join(wrong)}; or leave the method out")
    return tuple(chosen)


_WANTED: Mapping[Weights, str] = {
    "adapter": "an adapter (--adapter)",
    "text_adapter": "a LoRA that was trained on pasted texts (--text-adapter)",
    "gated": "an adapter and a gate (--gate)",
}


@dataclasses.dataclass(frozen=True)
class Synthesizers:
    """One model with the adapters that methods run.  gated: the adapter's, with a gate."""

    base: ParallelSynthesis
    adapter: ParallelSynthesis | None = None
    text_adapter: ParallelSynthesis | None = None
    gated: ParallelSynthesis | None = None

    @classmethod
    def over(
        cls,
        model: Model,
        adapter: str | Path | Adapter | None = None,
        text_adapter: str | Path | Adapter | None = None,
        template: TemplateVariables | None = None,
        gate: Gate | None = None,
    ) -> Self:
        """Put adapters on a model.

        gate: for `gated`.

        template: variables of the chat template, the same for all, so that all are asked the same; None: those that the
        adapter, or else the text adapter, was trained with.

        Raises `AdapterError`, `ModelMismatchError` or `InputError` for an adapter that cannot be used; a text adapter
        without a LoRA cannot: pasted texts are read without a mapper.
        """
        given = [load_adapter(a, model) if isinstance(a, str | Path) else a for a in (adapter, text_adapter)]
        if template is None:
            noted = [a.template for a in given if a is not None and a.template]
            template = noted[0] if noted else None
        base = ParallelSynthesis(model, template=template)
        adapted, for_text = (None if a is None else ParallelSynthesis(model, a, template=template) for a in given)
        if for_text is not None and for_text.adapter.lora is None:
            raise InputError("the text adapter has no LoRA: text-lora would be text")
        gated = None
        if gate is not None and adapted is not None:
            gated = copy.copy(adapted)  # it shares the compiled programs
            gated.gate = checked_gate(gate, model, lambda: gated.adapter.digest)
        return cls(base, adapted, for_text, gated)

    def of(self, method: Method) -> ParallelSynthesis:
        """Return the synthesizer that a method runs.  Raises `InputError` when its adapter was not given."""
        synth: ParallelSynthesis | None = getattr(self, method.weights)
        if synth is None:
            raise InputError(f"{method.name} needs {_WANTED[method.weights]}; or leave the method out")
        return synth
