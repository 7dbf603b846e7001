"""A conversation as a record: each earlier exchange is a branch, the last user turn is the query, the last reply the target.

    user  assistant | user  assistant | user      assistant
    '- branch 1 ---'  '- branch 2 ---'  query     target

Messages of one role in a row are one message, so that no word of the user is lost.  Knows no data set by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from psynth_jax.config import Config, Count
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources.fields import UnfitError, digest, items, text
from psynth_jax.data.sources.source import Amount

QUERY = (
    "The notes are earlier exchanges between a user and an assistant, and what follows is the user's next message. Read "
    "the exchanges, think step by step, and write the assistant's best next reply.\n\nMessage: {message}"
)


class DialogueOptions(Config):
    """What a conversation must have.

    min_turns: user messages, at least.  min_branches: earlier exchanges, at least.  max_contexts: only the latest exchanges
    become branches; 0 keeps them all.
    """

    min_turns: Count = 3
    min_branches: Count = 2
    max_contexts: Amount = 0


@dataclasses.dataclass(frozen=True)
class Message:
    """role is in lower case; content is not empty; source is the message as the row has it."""

    role: str
    content: str
    source: Mapping[str, Any]


def read_messages(
    value: Any, name: str, keys: tuple[str, str] = ("role", "content"), roles: Mapping[str, str] | None = None
) -> list[Message]:
    """Read a list of messages; those with an empty role or content are passed over.

    Args:
      value: of the row.
      name: of the field, for reasons.
      keys: of a message's role and content.
      roles: other names of roles.

    Raises:
      UnfitError: it is no list of messages.
    """
    messages = []
    for entry in items(value, name):
        if not isinstance(entry, Mapping):
            raise UnfitError(f"{name} has a message that is no object")
        role, content = (text(entry.get(key), f"{key} of a message") for key in keys)
        if role and content:
            role = role.lower().replace(" ", "_")
            messages.append(Message((roles or {}).get(role, role), content, entry))
    return messages


def render(messages: Sequence[Message]) -> str:
    """Write messages one below the other, each under [ROLE_i], i from 1."""
    return "\n\n".join(f"[{message.role.upper()}_{number}]\n{message.content}" for number, message in enumerate(messages, 1))


def dialogue_record(
    task: str, row_id: str, messages: Sequence[Message], options: DialogueOptions, meta: Mapping[str, Any], system: str = ""
) -> Record:
    """Make the record of a conversation.

    Args:
      task: of the record.
      row_id: its id; "" makes one of the content.
      messages: of user and assistant, in order.
      options: what the conversation must have.
      meta: to keep.
      system: text that the assistant was given beforehand; it goes before the query's message.

    Raises:
      UnfitError: the conversation does not have it.
    """
    if not messages:
        raise UnfitError("the conversation is empty")
    if any(message.role not in ("user", "assistant") for message in messages):
        raise UnfitError("a message is neither of the user nor of the assistant")
    turns = sum(message.role == "user" for message in messages)
    if turns < options.min_turns:
        raise UnfitError("too few turns")
    merged = _merge(messages)
    if merged[-1].role != "assistant":
        raise UnfitError("the last message is not the assistant's")
    if len(merged) < 2:
        raise UnfitError("no user message before the last reply")
    exchanges = _exchanges(merged[:-2])
    if len(exchanges) < options.min_branches:
        raise UnfitError("too few earlier exchanges")
    exchanges = exchanges[-options.max_contexts :]
    branches = [BranchText(f"Earlier exchange {number}:\n{render(pair)}") for number, pair in enumerate(exchanges, 1)]
    query = QUERY.format(message=merged[-2].content)
    if system:
        query = f"[SYSTEM]\n{system}\n\n{query}"
    row_id = row_id or digest(system, *(message.content for message in merged))
    return Record(row_id, task, query, tuple(branches), merged[-1].content, meta={**meta, "turns": turns})


def _merge(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            content = f"{merged[-1].content}\n\n{message.content}"
            merged[-1] = Message(message.role, content, message.source)
        else:
            merged.append(message)
    return merged


def _exchanges(history: Sequence[Message]) -> list[list[Message]]:
    """Cut alternating messages behind each reply; an assistant's opening words go with the exchange after them."""
    exchanges: list[list[Message]] = [[]]
    for message in history:
        exchanges[-1].append(message)
        if message.role == "assistant" and len(exchanges[-1]) > 1:
            exchanges.append([])
    return [exchange for exchange in exchanges if exchange]
