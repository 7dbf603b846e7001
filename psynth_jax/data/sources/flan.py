r"""FLAN: few-shot prompts whose examples become branches, and groups of examples that are already apart.

    flan      {"inputs": "Question: ...\nAnswer: ...\n\nQuestion: ...\nAnswer:", "targets": "...",
               "_task_name": "cot_gsm8k", "_template_type": "fs_opt", ...}
    flan_cot  {"id": "...", "task": "strategyqa", "examples": [{"input", "target", "rationale"}, ...],
               "input": "...", "target": "...", "rationale": "..."}

A task whose name ends in "ii" is inverse: its prompt gives answers and asks for the question.  It is turned round, so that
its record asks for the answer, too.  How prompts are cut is in `few_shot_rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psynth_jax.config import Config, Count
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources import few_shot_rules as rules
from psynth_jax.data.sources.fields import Row, UnfitError, digest, items, kept, text
from psynth_jax.data.sources.source import Amount, Source, dropping

QUERY = (
    "The notes are examples. Answer the question below in the way that they show: reason as they do, and give the final "
    "answer clearly.\n\n{question}"
)


class FlanOptions(Config):
    """Which prompts are taken.

    min_branches: examples, at least.  max_contexts: only the first so many examples become branches; 0 keeps them all.
    """

    min_branches: Count = 2
    max_contexts: Amount = 0


class FlanCotOptions(FlanOptions):
    """As for prompts; with rationale, branches and target give the reasons before the answer."""

    rationale: bool = True


def _flan(row: Row, options: FlanOptions) -> Iterator[Record]:
    prompt, target = text(row.get("inputs"), "inputs"), text(row.get("targets"), "targets")
    task = text(row.get("_task_name"), "_task_name")
    if not prompt or not target:
        raise UnfitError("no inputs or no targets")
    if text(row.get("_template_type"), "_template_type").startswith("zs"):
        raise UnfitError("a prompt without examples")
    contexts, question, gold = _inverse(prompt, target) if task.endswith("ii") else _forward(prompt, target)
    if len(contexts) < options.min_branches:
        raise UnfitError("too few examples")
    if not question:
        raise UnfitError("no question")
    if not gold:
        raise UnfitError("no answer")
    meta = kept(row, "_task_name", "_task_source", "_template_type") | {"rules": rules.VERSION}
    branches = tuple(map(BranchText, contexts[: options.max_contexts or None]))
    yield Record(digest(prompt, target), "flan", QUERY.format(question=question), branches, gold, meta=meta)


def _forward(prompt: str, target: str) -> tuple[list[str], str, str]:
    *examples, last = rules.blocks(prompt)
    examples = [example for example in examples if rules.has_content(example)]
    contexts = [f"Example question {number}:\n{example}" for number, example in enumerate(examples, 1)]
    return contexts, rules.bare_question(last), target


def _inverse(prompt: str, target: str) -> tuple[list[str], str, str]:
    inverted = rules.read_inverted(prompt)
    question, answer = rules.split_answer(target)
    contexts = [
        f"Example question {number}:\n{question}\n\nExample answer {number}:\n{answer}"
        for number, (question, answer) in enumerate(inverted.pairs, 1)
    ]
    return contexts, rules.bare_question(question), rules.merge_answers(inverted.pending, answer)


def _flan_cot(row: Row, options: FlanCotOptions) -> Iterator[Record]:
    examples = items(row.get("examples"), "examples")
    contexts = []
    for number, example in enumerate(examples[: options.max_contexts or None], 1):
        if not isinstance(example, Mapping):
            raise UnfitError("an example is no object")
        question, answer = _shot(example, options.rationale)
        contexts.append(f"Example question {number}:\n{question}\n\nExample answer {number}:\n{answer}")
    if len(examples) < options.min_branches:
        raise UnfitError("too few examples")
    question, target = _shot(row, options.rationale)
    row_id = text(row.get("id"), "id") or digest(question, target)
    answers = (text(row.get("target"), "target"),)
    yield Record(
        row_id,
        "flan_cot",
        QUERY.format(question=question),
        tuple(map(BranchText, contexts)),
        target,
        answers,
        kept(row, "task"),
    )


def _shot(example: Mapping[str, Any], rationale: bool) -> tuple[str, str]:
    question, answer = text(example.get("input"), "input"), text(example.get("target"), "target")
    if not question or not answer:
        raise UnfitError("an input or a target is empty")
    reasons = text(example.get("rationale"), "rationale") if rationale else ""
    return question, f"{reasons}\nThe answer is {answer}" if reasons else answer


FLAN = Source(
    "flan",
    dropping(_flan),
    "Few-shot prompts cut into their examples (FLAN v2)",
    FlanOptions,
    hub_id="ai2-adapt-dev/flan_v2_converted",
    revision="20f17e144dfdfe2d20f12f140ace5b95c31577c0",
)
FLAN_COT = Source("flan_cot", dropping(_flan_cot), "Groups of examples with reasons, the last one asked", FlanCotOptions)
