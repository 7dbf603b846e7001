"""What people see of prepared data: how much there is, how long it is, what was dropped, and an example in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from psynth_jax.cli.tables import NumberTable, TitledPanel
from psynth_jax.cli.view import printable
from psynth_jax.data.counts import counted

PERCENTILES = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
_MEANING = {
    "prompt": "prompt",
    "pasted": "prompt with texts",
    "target": "target",
    "branches": "branches (number)",
    "prefilled": "longest + prefix",
    "kept": "longest branch",
    "all_prefilled": "all + prefixes",
}


def prepared(facts: Mapping[str, Any]) -> Group:
    """Show what `psynth data prepare` wrote and what it dropped."""
    places = facts.get("directories", {})
    table = _table("task", "written", *(["to"] if places else []))
    for task, count in facts["tasks"].items():
        table.add_row(printable(task), f"{count:,}", *([printable(places[task])] if places else []))
    rows, written = counted(facts["rows"], "row"), _count(facts["tasks"], "written")
    title = Text(printable(f"{facts['source']}: {rows} read, {written} to {facts['into']}"))
    return Group(title, table, *_dropped(facts["dropped"]))


def tasks(described: Mapping[str, Mapping[str, Any]]) -> Group:
    """Show the tasks of a directory: tokens of their parts, where they come from, what was dropped."""
    shown: list[Any] = []
    for task, facts in described.items():
        source = facts["source"]
        given = f" from {source['input']}" if source.get("input") else ""
        examples = counted(facts["count"], "example")
        title = f"{task}: {examples} of {source.get('name', 'unknown')}{given}, tokens of {facts['model']}"
        table = _table("tokens", *PERCENTILES, "mean", "total")
        for name, meaning in _MEANING.items():
            row = facts["lengths"][name]
            numbers = [f"{row[column]:,.0f}" for column in PERCENTILES]
            table.add_row(meaning, *numbers, f"{row['mean']:,.1f}", f"{row['total']:,}")
        shown += [Text(printable(title)), table, *_dropped(facts["dropped"])]
    return Group(*shown)


def example(facts: Mapping[str, Any]) -> Group:
    """Show an example as text, branch by branch; what is prefilled and not kept is dim."""
    panels = [_panel(f"prompt · {counted(facts['lengths']['prompt'], 'token')}", Text(printable(facts["prompt"])))]
    for number, branch in enumerate(facts["branches"], start=1):
        text = Text.assemble((printable(branch["prefix"]), "dim"), printable(branch["text"]))
        before = f", {branch['prefix_tokens']:,} before it" if branch["prefix_tokens"] else ""
        panels.append(_panel(f"branch {number} · {counted(branch['tokens'], 'token')}{before}", text))
    panels.append(_panel(f"target · {counted(facts['lengths']['target'], 'token')}", Text(printable(facts["target"]))))
    title = f"{facts['task']}, example {facts['number']} of {facts['count']:,}: {facts['id']}"
    return Group(Text(printable(title)), *panels)


def _panel(title: str, text: Text) -> TitledPanel:
    return TitledPanel(text, title, border_style="dim")


def _dropped(reasons: Mapping[str, int]) -> list[Any]:
    """Show why rows and records were dropped, the most frequent reason first."""
    if not reasons:
        return [Text("nothing was dropped", style="dim")]
    table = _table("dropped because of", "rows")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}")
    return [table, Text(f"{_count(reasons, 'dropped')} in all", style="dim")]


def _count(counts: Mapping[str, int], what: str) -> str:
    return f"{sum(counts.values()):,} {what}"


def _table(first: str, *others: str) -> NumberTable:
    return NumberTable((first, *others))
