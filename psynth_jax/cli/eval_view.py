"""What `psynth eval` shows: progress while it runs, tables when it has ended."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from psynth_jax.cli.setting import activity, console
from psynth_jax.cli.tables import NumberTable
from psynth_jax.data.counts import counted

if TYPE_CHECKING:
    from psynth_jax.evaluation.run import OnRow, OnWritten, Plan

WRITING = {"questions": "workers", "others": "workers for self"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """Who is told of rows, and of questions about which workers have written."""

    row: OnRow
    written: OnWritten


@contextmanager
def progress(plan: Plan, methods: Sequence[str]) -> Iterator[Shown]:
    """Show a bar for the workers and for each method on a terminal, and a line now and then elsewhere."""
    questions = len(plan.own(plan.questions))
    if not console.is_terminal:
        with activity(f"0 of {questions * len(methods)} answers") as shown:
            yield _in_lines(questions, len(methods), lambda text: setattr(shown, "text", text))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        numbers: dict[str, Any] = {}

        def advance(name: str, count: int = 1) -> None:
            if name not in numbers:
                numbers[name] = bars.add_task(name, total=questions)
            bars.advance(numbers[name], count)

        # A bar for each method from the start says how much is to come; workers' are there when they write.
        if plan.workers is None:
            for method in methods:
                advance(method, 0)
        yield Shown(lambda row: advance(row["method"]), lambda kind, count: advance(WRITING[kind], count))


def _in_lines(questions: int, methods: int, say: Callable[[str], None]) -> Shown:
    answers: Counter[str] = Counter()
    written: Counter[str] = Counter()

    def row(row: Mapping[str, Any]) -> None:
        answers[row["method"]] += 1
        say(f"{answers.total()} of {questions * methods} answers, now {row['method']}")

    def write(kind: str, count: int) -> None:
        written[kind] += count
        say(f"{WRITING[kind]}: {written[kind]} of {counted(questions, 'question')}")

    return Shown(row, write)


def table(summary: Mapping[str, Any]) -> Group:
    """Show what every method reached, then what it took, and say how both were measured."""
    methods = summary["methods"]
    if not methods:
        return Group(Text("No method has answered all questions yet: other parts of the run are missing."))
    tables = [_reached(summary)]
    compared = _against_text(summary)
    if compared is not None:
        tables.append(compared)
    took = NumberTable(("method", "TTFT", "total", "tokens of prompt", "read from caches", "answer tokens"))
    for name, found in methods.items():
        times = [_seconds(found[time]) for time in ("ttft_s", "total_s")]
        took.add_row(name, *times, *_counts(found, "prompt_tokens", "cached_tokens", "generated_tokens"))
    notes = [
        counted(summary["questions"], "question")
        + ".  Scores in percent, with bootstrap intervals; what does not fit scores 0."
    ]
    if compared is not None:
        notes.append("Less that of text: paired by question; where the interval holds 0 it may be chance.")
    for each in summary["comparisons"]:
        if each["score"] == summary["main_score"] and each["ratio"] is not None:
            notes.append(_ratio(each))
    if "batch" in summary:  # answers that were given took no time
        notes.append(_ttft_note(summary["batch"]) + "  Total: to its last token.  Tokens: means.")
    notes += _no_time_note(methods)
    notes += _gate_note(summary.get("gate"))
    notes += _workers_note(summary.get("worker_output"))
    return Group(*tables, took, *(Text(note, style="dim") for note in notes))


def _reached(summary: Mapping[str, Any]) -> NumberTable:
    scores = summary["scores"]
    shown = NumberTable(("method", *(f"{name.upper()} [95%]" for name in scores), "cut off", "does not fit"))
    for name, found in summary["methods"].items():
        cells = [_percent(found[score]) for score in scores]
        shown.add_row(name, *cells, *_counts(found, "cut_off", "does_not_fit"))
    return shown


def _against_text(summary: Mapping[str, Any]) -> NumberTable | None:
    """Show how methods differ from the text route; None where it has not answered."""
    main = summary["main_score"]
    shown = NumberTable(("method", f"{main.upper()} less that of text [95%]", "same answer as text"))
    for name, found in summary["methods"].items():
        if "judge_consistency" not in found:
            continue
        difference = found["difference_to_text"][main]
        low, high = 100 * difference["low"], 100 * difference["high"]
        difference_cell = f"{100 * difference['value']:+.1f} [{low:+.1f}, {high:+.1f}]"
        shown.add_row(name, difference_cell, f"{100 * found['judge_consistency']['mean']:.0f}%")
    return shown if shown.rows else None


def _counts(found: Mapping[str, Any], *names: str) -> list[str]:
    return ["-" if found[name] is None else f"{found[name]:,.0f}" for name in names]


def _seconds(time: float | None) -> str:
    return "-" if time is None else f"{time:.3f} s"


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _ttft_note(batch: int) -> str:
    of = "a question" if batch == 1 else f"a batch of up to {batch} (--batch 1: of a question)"
    return f"TTFT: median, from branches ready to the first token of {of}."


def _no_time_note(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of a method that asks no model why it has no time; one that fits no question has no tokens either."""
    notes = []
    for name, found in methods.items():
        if found["ttft_s"] is None and found["prompt_tokens"] == 0:
            notes.append(f"{name} asks no model: it has no TTFT.")
    return notes


def _workers_note(written: Mapping[str, Any] | None) -> list[str]:
    """Say how workers wrote, and how many texts are not what they would have been with more room."""
    if written is None:
        return []
    rate = "" if written["tokens_per_s"] is None else f", {written['tokens_per_s']:.1f} tokens a second"
    note = f"Workers wrote {counted(written['texts'], 'text')}{rate}"
    for name, said in (("cut_off", "cut off"), ("does_not_fit", "did not fit"), ("empty", "empty")):
        if written[name]:
            note += f"; {written[name]} {said}"
    return [f"{note}."]


def _gate_note(gate: Mapping[str, Any] | None) -> list[str]:
    if gate is None or "chosen" not in gate:  # one that was given
        return []
    chosen = gate["chosen"]
    rule = f"Gate: {gate['measure']} above {gate['threshold']:.3f}, chosen on {gate['calibrated_on']} questions"
    held_out = f"on the other {gate['held_out']}: {100 * chosen['score']:.1f} {gate['score']}"
    return [f"{rule}; {held_out}, {100 * chosen['accepted']:.0f}% from caches, TTFT {chosen['ttft_s']:.3f} s."]


def _ratio(compared: Mapping[str, Any]) -> str:
    ratio, name = compared["ratio"], compared["score"].upper()
    return (
        f"{name} of {compared['method']} is {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times "
        f"that of {compared['against']}."
    )
