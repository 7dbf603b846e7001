r"""Toucan-1.5M: trajectories of a model with tools.  One parser (`tool_steps.py`), two sources.

{"uuid": "...", "subset_name": "single-turn-original", "question": "...", "messages": "[{\"role\": \"user\", ...}, ...]"}

toucan_single   user  plan  call | call | call   responses   ...   final answer
                '- prefix -'  b1     b2     b3                     target        the rest of the calls: in the query
toucan_multi    turn 1 | turn 2 | ... | turn n's user message, its plan before any call
                branch   branch         query                  target
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from psynth_jax.config import Config, Count
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources.fields import Row, UnfitError, digest, kept, text
from psynth_jax.data.sources.source import Source, dropping
from psynth_jax.data.sources.tool_steps import Burst, Event, Said, Step, read_steps, render_event, render_steps

SINGLE_QUERY = (
    "The notes are calls of tools that were made for the user's question, each with its response. Read them, reason over "
    "the evidence, and write the assistant's final answer to the user.\n\nQuestion: {question}"
)
OTHER_CALLS = "\n\nOther calls that were made for it, in this order:\n\n{calls}"
MULTI_QUERY = (
    "The notes are earlier turns of a conversation with tools, and what follows is the user's next message. Write the "
    "assistant's next plan, before any tool is called.\n\nMessage: {message}"
)
_HUB_ID, _REVISION = "Agent-Ark/Toucan-1.5M", "0df3cf37f2abefb380370cfb02eabea2a35ae782"


class SingleOptions(Config):
    """What becomes a branch.

    calls: "burst" takes the calls of the last burst of parallel calls, and puts others of that turn into the query; "block"
    takes all calls between two messages, as the published code does, and leaves others out.  min_branches: calls, at least.
    """

    calls: Literal["burst", "block"] = "burst"
    min_branches: Count = 2


class MultiOptions(Config):
    """Which conversations are taken.

    min_branches: earlier turns, at least.  single_burst: drop conversations in which a turn has several bursts of calls.
    """

    min_branches: Count = 2
    single_burst: bool = True


def _is_multi(row: Row, steps: Sequence[Step]) -> bool:
    users = sum(isinstance(step, Said) and step.role == "user" for step in steps)
    return text(row.get("subset_name"), "subset_name") == "multi-turn" or users > 1


def _id(row: Row, steps: Sequence[Step]) -> str:
    return text(row.get("uuid"), "uuid") or digest(render_steps(steps))


def _single(row: Row, options: SingleOptions) -> Iterator[Record]:
    steps = [step for step in read_steps(row.get("messages"), "messages") if not _is_system(step)]
    if _is_multi(row, steps):
        raise UnfitError("several turns: a row of toucan_multi")
    final = steps[-1] if steps else None
    if not isinstance(final, Said) or final.role != "assistant" or not final.content:
        raise UnfitError("it does not end with the assistant's answer")
    parallel = [index for index, step in enumerate(steps) if isinstance(step, Burst) and _sent(step) >= 2]
    if not parallel:
        raise UnfitError("no calls in parallel")
    first, last = _block(steps, parallel[-1]) if options.calls == "block" else (parallel[-1], parallel[-1] + 1)
    events = _events(steps[first:last])
    if len(events) < options.min_branches:
        raise UnfitError("too few calls")
    users = [step.content for step in steps if isinstance(step, Said) and step.role == "user"]
    question = text(row.get("question"), "question") or "".join(users)
    if not question:
        raise UnfitError("no question")
    query = SINGLE_QUERY.format(question=question)
    others = [step for step in (*steps[:first], *steps[last:]) if isinstance(step, Burst)]
    if others and options.calls == "burst":
        query += OTHER_CALLS.format(calls=render_steps(others))
    prefix = render_steps(steps[:first])
    prefix += "\n\n" if prefix else ""
    branches = tuple(BranchText(render_event(event, number), prefix) for number, event in enumerate(events, 1))
    meta = kept(row, "subset_name", "config_name")
    yield Record(_id(row, steps), "toucan_single", query, branches, final.content, meta=meta)


def _is_system(step: Step) -> bool:
    return isinstance(step, Said) and step.role == "system"


def _sent(burst: Burst) -> int:
    return sum(bool(event.call) for event in burst.events)


def _events(steps: Sequence[Step]) -> list[Event]:
    events = [event for step in steps if isinstance(step, Burst) for event in step.events]
    return [event for event in events if render_event(event, 1)]


def _block(steps: Sequence[Step], index: int) -> tuple[int, int]:
    """Return the ends of the run of bursts around one of them."""
    first = last = index
    while first and isinstance(steps[first - 1], Burst):
        first -= 1
    while last < len(steps) and isinstance(steps[last], Burst):
        last += 1
    return first, last


def _multi(row: Row, options: MultiOptions) -> Iterator[Record]:
    steps = [step for step in read_steps(row.get("messages"), "messages") if not _is_system(step)]
    if not _is_multi(row, steps):
        raise UnfitError("one turn: a row of toucan_single")
    turns = _turns(steps)
    while turns and not _bursts(turns[-1]):
        turns.pop()
    if len(turns) < options.min_branches + 1:
        raise UnfitError("too few turns")
    if options.single_burst and any(len(_bursts(turn)) > 1 for turn in turns):
        raise UnfitError("a turn has several bursts of calls")
    current = turns[-1]
    users, plan = _said(current, "user"), _said(list(itertools.takewhile(lambda step: isinstance(step, Said), current)))
    if not users:
        raise UnfitError("no user message before the last calls")
    if not plan:
        raise UnfitError("no plan before the last calls")
    branches = tuple(
        BranchText(f"Earlier turn {number}:\n{_render_turn(turn)}") for number, turn in enumerate(turns[:-1], 1)
    )
    query = MULTI_QUERY.format(message=users)
    yield Record(_id(row, steps), "toucan_multi", query, branches, plan, meta=kept(row, "subset_name", "config_name"))


def _turns(steps: Sequence[Step]) -> list[list[Step]]:
    """Cut before each user message that follows something else."""
    turns: list[list[Step]] = []
    for step in steps:
        is_user = isinstance(step, Said) and step.role == "user"
        follows_user = bool(turns) and isinstance(turns[-1][-1], Said) and turns[-1][-1].role == "user"
        if not turns or (is_user and not follows_user):
            turns.append([])
        turns[-1].append(step)
    return turns


def _bursts(turn: Sequence[Step]) -> list[Burst]:
    return [step for step in turn if isinstance(step, Burst)]


def _said(steps: Sequence[Step], role: str = "assistant") -> str:
    """Join what a role said, each text once."""
    return "\n\n".join(dict.fromkeys(step.text for step in steps if isinstance(step, Said) and step.role == role))


def _render_turn(turn: Sequence[Step]) -> str:
    before = list(itertools.takewhile(lambda step: isinstance(step, Said), turn))
    after = turn[len(before) :]
    calls = [render_event(event, number) for number, event in enumerate(_events(turn), 1)]
    planning, response = ("[ASSISTANT_PLANNING]", "[ASSISTANT_RESPONSE]")
    parts = [
        _headed("[USER_QUERY]", _said(turn, "user")),
        _headed(planning if after else response, _said(before)),
        *calls,
        _headed(response, _said(after)),
    ]
    return "\n\n".join(filter(None, parts))


def _headed(header: str, content: str) -> str:
    return f"{header}\n{content}" if content else ""


TOUCAN_SINGLE = Source(
    "toucan_single",
    dropping(_single),
    "One question, tools called in parallel, one answer (Toucan-1.5M)",
    SingleOptions,
    hub_id=_HUB_ID,
    revision=_REVISION,
    config=("SFT", "Kimi-K2", "Qwen3"),
)
TOUCAN_MULTI = Source(
    "toucan_multi",
    dropping(_multi),
    "Several turns with tools; the next plan is to be written (Toucan-1.5M)",
    MultiOptions,
    hub_id=_HUB_ID,
    revision=_REVISION,
    config="SFT",
)
