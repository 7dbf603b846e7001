"""Ways of answering a question, by name.  Each is a function over a `ParallelSynthesis`, made for a batch of questions.

    name            reads                         weights
    text            the texts, pasted             the base model
    text-lora       the texts, pasted             a LoRA that was trained on pasted texts
    branches        its branches                  the adapter: LoRA and mapper
    identity        its branches                  the base model, no mapper
    question        nothing: the same prompt      the adapter's LoRA
    wrong-branches  those of another question     the adapter
    vote            nothing: no model is asked    none: the branches' own answers, the most frequent one
    self            an answer of its own          the adapter; the base model wrote the answer

`text-lora` is the yardstick for `branches`: as much training, the same examples, everything prefilled.  `identity` says what
the adapter adds; `question` and `wrong-branches` say whether the branches are read at all, and not only guessed around.
`vote` is what the workers reach without a synthesizer; `self` tells how much comes from a second look at the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.adapters import load_adapter
from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation.second_look import own_branches
from psynth_jax.evaluation.tasks import Question
from psynth_jax.model import Model
from psynth_jax.prompts import baseline_messages, synthesis_messages
from psynth_jax.synthesis.inputs import tokenizer_of
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
from psynth_jax.template_variables import TemplateVariables

Weights: TypeAlias = Literal["base", "adapter", "text_adapter"]
Answer: TypeAlias = Callable[[ParallelSynthesis, Sequence[Question], Mapping[str, Any]], list[SynthesisResult]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of answering.

    weights: which synthesizer it runs.  answer: takes that one, questions, and sampling options of `synthesize`; None for a
    method that asks no model, whose answer is what the branches elect, see voting.py.
    of_another: the questions come with the branches of other questions, see `with_wrong_branches`.
    draws: it draws random numbers at any temperature.
    """

    name: str
    weights: Weights
    answer: Answer | None
    of_another: bool = False
    draws: bool = False


def _pasted(synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]) -> list[SynthesisResult]:
    queries = [question.query for question in questions]
    return synth.synthesize_text(queries, [question.texts for question in questions], **options)


def _pasted_with_lora(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    chats = [baseline_messages(question.query, question.texts) for question in questions]
    return synth.synthesize(chats, None, **options)


def _from_branches(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    encode = tokenizer_of(synth.model).encode  # a prefix may be blank, which no prompt may be
    prefixes = [[encode(prefix) for prefix in question.prefixes] for question in questions]
    branches = synth.encode([question.texts for question in questions], prefixes)
    return synth.synthesize([question.query for question in questions], branches, **options)


def _from_nothing(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    """Answer the prompt that goes with branches, word for word: nothing but the branches is missing."""
    return synth.synthesize([synthesis_messages(question.query) for question in questions], None, **options)


def _from_itself(
    synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> list[SynthesisResult]:
    """Answer from one branch, the base model's own answer to the question alone."""
    branches = own_branches(synth, questions, options["max_new_tokens"], options["seed"])
    return synth.synthesize([question.query for question in questions], branches, **options)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("text", "base", _pasted),
        Method("text-lora", "text_adapter", _pasted_with_lora),
        Method("branches", "adapter", _from_branches),
        Method("identity", "base", _from_branches),
        Method("question", "adapter", _from_nothing),
        Method("wrong-branches", "adapter", _from_branches, of_another=True),
        Method("vote", "base", None),
        Method("self", "adapter", _from_itself, draws=True),
    )
}


def choose(names: Sequence[str], given: Set[Weights]) -> tuple[Method, ...]:
    """Return methods by name, in the order of `METHODS`.

    Args:
      names: no name twice.
      given: the adapters that there are.

    Raises `InputError` for an unknown name, one that comes twice, none at all, or methods whose adapter is not given.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        wrong = f"there is no method {unknown[0]!r}" if unknown else "no method is given"
        raise InputError(f"{wrong}: choose from {', '.join(METHODS)}")
    if len(set(names)) < len(names):
        raise InputError(f"a method is named twice: {', '.join(names)}")
    chosen = tuple(method for name, method in METHODS.items() if name in names)
    lacking = {kind: [m.name for m in chosen if m.weights == kind and kind not in given] for kind in _WANTED}
    wrong = "; ".join(f"{', '.join(who)} needs {_WANTED[kind]}" for kind, who in lacking.items() if who)
    if wrong:
        raise InputError(f"{wrong}; or leave the method out")
    return chosen


_WANTED: Mapping[Weights, str] = {
    "adapter": "an adapter (--adapter)",
    "text_adapter": "a LoRA that was trained on pasted texts (--text-adapter)",
}


@dataclasses.dataclass(frozen=True)
class Synthesizers:
    """One model with the adapters that methods run."""

    base: ParallelSynthesis
    adapter: ParallelSynthesis | None = None
    text_adapter: ParallelSynthesis | None = None

    @classmethod
    def over(
        cls,
        model: Model,
        adapter: str | Path | Adapter | None = None,
        text_adapter: str | Path | Adapter | None = None,
        template: TemplateVariables | None = None,
    ) -> Self:
        """Put adapters on a model.

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
        return cls(base, adapted, for_text)

    def of(self, method: Method) -> ParallelSynthesis:
        """Return the synthesizer that a method runs.  Raises `InputError` when its adapter was not given."""
        synth: ParallelSynthesis | None = getattr(self, method.weights)
        if synth is None:
            raise InputError(f"{method.name} needs {_WANTED[method.weights]}; or leave the method out")
        return synth


def with_wrong_branches(questions: Sequence[Question]) -> list[Question]:
    """Give every question the branches of another one, and nothing to be right by.

    They come from the next question, in the order given and from the start again after the last, that accepts no answer
    in common and has no branch in common with it.  Raises `DataError` for a question that finds none.
    """
    return [dataclasses.replace(question, branches=_other(questions, at).branches) for at, question in enumerate(questions)]


def _other(questions: Sequence[Question], at: int) -> Question:
    question = questions[at]
    for step in range(1, len(questions)):
        other = questions[(at + step) % len(questions)]
        if not question.shares_an_answer(other) and not set(question.texts) & set(other.texts):
            return other
    raise DataError(
        f"wrong-branches: no other question has other answers and other branches than {question.id!r}; "
        "give a file with more questions, or leave the method out"
    )
