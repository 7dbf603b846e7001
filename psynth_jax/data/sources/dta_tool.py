r"""DTA-Tool: conversations in which the assistant calls several tools at once and then finishes.

    {"id": "...", "conversations": [{"from": "system" | "user" | "assistant" | "function", "value": "..."}, ...]}

    assistant  Thought: ...  Function Call: [{"name": "a", ...}, {"name": "b", ...}]     branch i: call i and response i
    function   response a
    function   response b
    assistant  Thought: ...  Function Call: [{"name": "Finish", "arguments": {"final_answer": "..."}}]      target

Each assistant turn with two calls or more that leads to an answer gives a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from psynth_jax.config import Config, Count
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources.dialogue import Message, read_messages, render
from psynth_jax.data.sources.fields import Row, UnfitError, as_json, balanced, digest, identifier, literal, structure, text
from psynth_jax.data.sources.source import Source, dropping

_MARKER = "Function Call:"
_FINISH = "Finish"
_ID_KEYS = ("id", "call_id", "tool_call_id")

PUBLISHED_QUERY = (
    "The notes are calls of tools that were made for the question, each with its response. Read them, reason over the "
    "evidence, and give the final answer in \\boxed{{}}.\n\nQuestion: {question}"
)
SHORT_QUERY = (
    "The notes are calls of tools that were made for the question, each with its response. Read them and answer the "
    "question.\n\nQuestion: {question}"
)


class DTAOptions(Config):
    r"""How turns become records.

    style: "published" has <think> thought </think> \boxed{answer} as target, "short" the answer alone.  min_calls: calls at
    once, at least.  keep_system: the prefix of a branch begins with the system prompt, which lists all tools.
    """

    style: Literal["published", "short"] = "published"
    min_calls: Count = 2
    keep_system: bool = True


def _calls(message: Message) -> list[Mapping[str, Any]]:
    """Return the calls of an assistant turn; none where it has no readable list of them."""
    _, marker, rest = message.content.partition(_MARKER)
    spelled = balanced(rest, len(rest) - len(rest.lstrip())) if marker and rest.lstrip().startswith("[") else None
    calls = literal(spelled) if spelled else None
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []


def _thought(message: Message) -> str:
    return re.sub(r"^\s*Thought:", "", message.content.partition(_MARKER)[0]).strip()


def _final_answer(calls: Sequence[Mapping[str, Any]]) -> str:
    for call in calls:
        arguments = structure(call.get("arguments"))
        if call.get("name") == _FINISH and isinstance(arguments, Mapping):
            return text(arguments.get("final_answer"), "final_answer")
    return ""


def _pair(calls: Sequence[Mapping[str, Any]], responses: Sequence[Message]) -> list[tuple[Mapping[str, Any], str]]:
    """Give each call its response: by id where both have one, else in order."""

    def id_of(entry: Mapping[str, Any]) -> str:
        return next(filter(None, (identifier(entry.get(key)) for key in _ID_KEYS)), "")

    ids = [id_of(response.source) for response in responses]
    if all(ids) and len({*ids}) == len(ids) and all(id_of(call) in ids for call in calls):
        return [(call, responses[ids.index(id_of(call))].content) for call in calls]
    return [(call, response.content) for call, response in zip(calls, responses, strict=False)]


def _convert(row: Row, options: DTAOptions) -> Iterator[Record]:
    messages = read_messages(row.get("conversations"), "conversations", ("from", "value"))
    if not messages:
        raise UnfitError("the conversation is empty")
    row_id = digest(*(message.content for message in messages))
    reasons: list[str] = []
    count = 0
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        calls = [call for call in _calls(message) if call.get("name") != _FINISH]
        if len(calls) < options.min_calls:
            continue
        after = next((at for at in range(index + 1, len(messages)) if messages[at].role != "function"), len(messages))
        responses = messages[index + 1 : after]
        finish = messages[after] if after < len(messages) and messages[after].role == "assistant" else None
        answer = _final_answer(_calls(finish)) if finish else ""
        if len(responses) < len(calls):
            reasons.append("fewer responses than calls")
        elif finish is None or not answer:
            reasons.append("no final answer right after the calls")
        else:
            count += 1
            asked = [earlier.content for earlier in messages[:index] if earlier.role == "user"]
            question = asked[-1] if asked else text(row.get("id"), "id")
            if not question:
                raise UnfitError("no question")
            pairs = _pair(calls, responses)
            prefix = _prefix(messages[:index], _thought(message), options)
            yield _record(f"{row_id}_{count}", question, prefix, pairs, _thought(finish), answer, options)
    if not count:
        raise UnfitError(reasons[0] if reasons else "no turn with enough calls at once")


def _prefix(before: Sequence[Message], thought: str, options: DTAOptions) -> str:
    before = [message for message in before if options.keep_system or message.role != "system"]
    parts = [f"[PREVIOUS_CONTEXT]\n{render(before)}\n\n"] if before else []
    parts += [f"[ASSISTANT_PRECALL_THOUGHT]\n{thought}\n\n"] if thought else []
    return "".join(parts)


def _record(
    row_id: str,
    question: str,
    prefix: str,
    pairs: Sequence[tuple[Mapping[str, Any], str]],
    thought: str,
    answer: str,
    options: DTAOptions,
) -> Record:
    branches = tuple(
        BranchText(
            f"[PARALLEL_TOOL_CALL_{number}]\n{as_json(call)}\n\n[PARALLEL_TOOL_RESPONSE_{number}]\n{response}", prefix
        )
        for number, (call, response) in enumerate(pairs, 1)
    )
    if options.style == "short":
        return Record(row_id, "dta_tool", SHORT_QUERY.format(question=question), branches, answer)
    target = f"<think>\n{thought}\n</think>\n\\boxed{{{answer}}}" if thought else f"\\boxed{{{answer}}}"
    return Record(row_id, "dta_tool", PUBLISHED_QUERY.format(question=question), branches, target)


DTA_TOOL = Source(
    "dta_tool",
    dropping(_convert),
    "Tools called at once, then an answer (DTA-Tool, made from ToolBench)",
    DTAOptions,
    hub_id="dongsheng/DTA-Tool",
    revision="76e4d52f630aaba4721abd56a7666058664068c6",
)
