"""A trajectory with tool calls as steps: messages, and bursts of calls that were sent together, each with its response.

    user      assistant      call call  response response   call  response   assistant
    Said      Said           Burst(2 events)                Burst(1 event)   Said

Reads the message forms of Toucan and its relatives: `function_call` and `function` (Qwen-Agent), `tool_call` and
`tool_response`, `tool_calls` and `tool` (OpenAI).  Knows no data set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from psynth_jax.data.sources.fields import Row, UnfitError, as_json, identifier, items, mapping, structure, text

_RESPONSES = ("function", "tool", "tool_response")
_ID_KEYS = ("call_id", "tool_call_id", "function_id")


@dataclasses.dataclass
class Event:
    """A call and its response.  call is JSON with name and arguments; an empty text is missing.  id and name pair them."""

    call: str
    response: str = ""
    id: str = ""
    name: str = ""
    answered: bool = False


@dataclasses.dataclass
class Said:
    """A message: reasoning is what the assistant thought and did not say."""

    role: str
    content: str
    reasoning: str = ""

    @property
    def text(self) -> str:
        """What was said, or else thought."""
        return self.content or self.reasoning


@dataclasses.dataclass
class Burst:
    """Calls that were sent before the first response to any of them came."""

    events: list[Event] = dataclasses.field(default_factory=list)
    closed: bool = False  # a response has come


Step: TypeAlias = Said | Burst


def read_steps(value: Any, name: str) -> list[Step]:
    """Read a list of messages, or the JSON that spells it, into steps; messages that say nothing are passed over.

    Raises `UnfitError` for what is no list of messages, and for a role that is unknown.
    """
    if isinstance(value, str) and not isinstance(structure(value), list):
        raise UnfitError(f"{name} is no JSON list")
    steps: list[Step] = []
    for entry in items(value, name):
        if not isinstance(entry, Mapping):
            raise UnfitError(f"{name} has a message that is no object")
        role = text(entry.get("role"), "role of a message").lower()
        if role in _RESPONSES:
            _answer(steps, entry)
            continue
        if role not in ("user", "system", "assistant", "tool_call"):
            raise UnfitError("a message has a role that is unknown")
        if role != "tool_call":
            reasoning = text(entry.get("reasoning_content"), "reasoning_content") if role == "assistant" else ""
            said = Said(role, text(entry.get("content"), "content of a message"), reasoning)
            if said.text:
                steps.append(said)
        for event in _calls(entry, role):
            if not steps or not isinstance(steps[-1], Burst) or steps[-1].closed:
                steps.append(Burst())
            burst = steps[-1]
            assert isinstance(burst, Burst)
            burst.events.append(event)
    return steps


def _calls(entry: Row, role: str) -> Iterator[Event]:
    if role == "tool_call":
        content = structure(entry.get("content"))
        if isinstance(content, Mapping):
            yield _event(content, entry)
        elif spelled := text(content, "content of a message"):
            yield Event(spelled, id=_id_of(entry))
    elif role == "assistant":
        single = structure(entry.get("function_call"))
        if isinstance(single, Mapping) and text(single.get("name"), "name of a call"):
            yield _event(single, entry)
        for call in items(entry.get("tool_calls"), "tool_calls"):
            call = mapping(call, "a call of tool_calls")
            function = call if call.get("function") is None else mapping(call["function"], "a call of tool_calls")
            yield _event({**function, "id": call.get("id")}, call)


def _event(call: Row, around: Row) -> Event:
    name = text(call.get("name"), "name of a call")
    # Arguments are often JSON inside a text: written out once, not escaped twice.
    spelled = as_json({"name": name, "arguments": structure(call.get("arguments"))})
    return Event(spelled, id=_id_of(call, "id") or _id_of(around), name=name)


def _id_of(entry: Row, *more_keys: str) -> str:
    """Return the id of a call.  A plain "id" is one on the call itself only: a message may have an id of its own."""
    extra = entry.get("extra")
    for source in (entry, extra if isinstance(extra, Mapping) else {}):
        for key in (*_ID_KEYS, *more_keys):
            if found := identifier(source.get(key)):
                return found
    return ""


def _answer(steps: list[Step], entry: Row) -> None:
    """Give a response to its call: the one with its id, else of the burst the first of its name, else the first."""
    content = entry.get("content")
    is_plain = content is None or (isinstance(content, str | int | float) and not isinstance(content, bool))
    response = text(content if is_plain else as_json(content), "content of a response")
    bursts = [step for step in steps if isinstance(step, Burst)]
    event_id, name = _id_of(entry), text(entry.get("name"), "name of a response")
    open_events = [event for burst in bursts[-1:] for event in burst.events if not event.answered]
    by_id = [event for burst in bursts for event in burst.events if event_id and event.id == event_id and not event.answered]
    without_id = [event for event in open_events if not (event_id and event.id)]
    found = by_id or [event for event in without_id if name and event.name == name] or without_id
    if found:
        found[0].response, found[0].answered = response, True
    elif response:
        # A response to nothing: evidence all the same.
        if not bursts or steps[-1] is not bursts[-1]:
            bursts.append(Burst())
            steps.append(bursts[-1])
        bursts[-1].events.append(Event("", response, event_id, name, answered=True))
    if bursts:
        bursts[-1].closed = True


def render_event(event: Event, number: int) -> str:
    """Write a call and its response; what is missing is left out."""
    parts = [f"[TOOL_CALL {number}]\n{event.call}"] if event.call else []
    parts += [f"[TOOL_RESPONSE {number}]\n{event.response}"] if event.response else []
    return "\n\n".join(parts)


def render_steps(steps: Sequence[Step]) -> str:
    """Write steps one below the other: messages under their role, calls and responses numbered from 1."""
    blocks, number = [], 0
    for step in steps:
        if isinstance(step, Said):
            blocks.append(f"[{step.role.upper()}]\n{step.text}")
            continue
        for event in step.events:
            number += 1
            blocks.append(render_event(event, number))
    return "\n\n".join(filter(None, blocks))
