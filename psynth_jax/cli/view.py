"""What people see of a run: texts as they are written, side by side, then a table of what each way of answering took.

Knows nothing about models; what goes to stdout is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from psynth_jax.cli.tables import NumberTable, TitledPanel
from psynth_jax.data.counts import counted
from psynth_jax.errors import ContextLengthError

if TYPE_CHECKING:
    from psynth_jax.synthesis.outputs import StreamedToken
    from psynth_jax.synthesis.pipeline import SynthesisResult

Answers: TypeAlias = "Mapping[str, SynthesisResult | ContextLengthError]"

NARROWEST, HIGHEST, LOWEST = 30, 12, 4  # columns of a panel; lines of one that is being written
GIVEN_SHOWN = 240  # characters of a text that the user gave, and knows
ENDED = {"stop": "", "length": " · cut off", "given": " · given"}


@dataclasses.dataclass
class _Writing:
    """A text that is being written."""

    title: str
    text: str = ""
    tokens: int = 0
    ended: bool = False

    def push(self, token: StreamedToken, stop_ids: frozenset[int], limit: int) -> None:
        self.text += token
        if token.token_id in stop_ids:
            self.ended = True
        elif token.token_id is not None:
            self.tokens += 1
            self.ended = self.tokens == limit


@contextmanager
def watch(
    console: Console, titles: Sequence[str], stop_ids: frozenset[int], limit: int
) -> Iterator[Callable[[int, StreamedToken], None]]:
    """Show texts as they are written, a panel each; yield what takes (number of the panel, token).

    On anything but a terminal nothing is shown.

    Args:
      stop_ids, limit: a text has ended with one of these tokens, or when it has so many.
    """
    writing = [_Writing(title) for title in titles]

    def push(number: int, token: StreamedToken) -> None:
        writing[number].push(token, stop_ids, limit)

    if not console.is_terminal:
        yield push
        return
    with Live(
        get_renderable=lambda: _panels(console, writing), console=console, refresh_per_second=8, transient=True
    ) as live:
        yield push
        live.refresh()


def _panels(console: Console, writing: Sequence[_Writing]) -> Table:
    """Lay panels out in as many columns as fit, low enough for the screen, each with the last lines of its text."""
    columns = _columns(console.width, len(writing))
    height = min(max((console.height - 1) // math.ceil(len(writing) / columns), LOWEST), HIGHEST)
    panels = []
    for each in writing:
        lines = Text(printable(each.text.strip())).wrap(console, max(console.width // columns - 4, 1))
        count = f" · {_tokens(each.tokens)}" if each.tokens else ""
        style = "dim" if each.ended or not each.tokens else "cyan"
        shown = Text("\n").join(lines[-(height - 2) :])
        panels.append(Panel(shown, title=Text(each.title + count), title_align="left", height=height, border_style=style))
    return _grid(panels, columns)


def _tokens(count: int) -> str:
    return counted(count, "token")


def _columns(width: int, panels: int) -> int:
    return max(min(width // NARROWEST, panels), 1)


def _grid(panels: Sequence[RenderableType], columns: int) -> Table:
    grid = Table.grid(expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    for first in range(0, len(panels), columns):
        grid.add_row(*panels[first : first + columns])
    return grid


def workers_panels(names: Sequence[str], texts: Sequence[str], tokens: Sequence[int], reasons: Sequence[str]) -> Group:
    """Show each worker's whole text, its tokens, and whether it was cut off."""
    panels = []
    for name, text, count, reason in zip(names, texts, tokens, reasons, strict=True):
        shown = printable(text.strip())
        if reason == "given" and len(shown) > GIVEN_SHOWN:
            shown = shown[:GIVEN_SHOWN].rstrip() + " …"
        mark = ENDED[reason] if shown else " · wrote nothing, left out"
        panels.append(TitledPanel(shown, f"{name} · {_tokens(count)}{mark}", border_style="dim"))
    return Group(*panels)


def answers(console: Console, results: Answers) -> Table:
    """Show several answers side by side, or one below the other where the terminal is narrow."""
    columns = len(results) if _columns(console.width, len(results)) == len(results) else 1
    return _grid([_answer(name, result) for name, result in results.items()], columns)


def _answer(name: str, result: SynthesisResult | ContextLengthError) -> TitledPanel:
    if isinstance(result, ContextLengthError):
        return TitledPanel(str(result), f"from {name} · does not fit", border_style="dim")
    subtitle = f"first token after {result.ttft_s:.2f} s"
    return TitledPanel(printable(result.text.strip()), f"from {name}{ENDED[result.finish_reason]}", subtitle)


def results_table(results: Answers) -> Group:
    """Compare ways of answering: time to first token, what was prefilled, what was read, and the speed after that."""
    table = NumberTable(("answer from", "TTFT", "tokens of prompt", "read from caches", "answer tokens", "tokens/s"))
    measured = {name: result for name, result in results.items() if not isinstance(result, ContextLengthError)}
    for name, result in measured.items():
        table.add_row(
            name,
            f"{result.ttft_s:.3f} s",
            f"{result.prompt_tokens:,}",
            f"{result.cached_tokens:,}",
            f"{len(result.token_ids):,}{ENDED[result.finish_reason]}",
            f"{result.decode_tokens_per_s:.1f}",
        )
    notes = ["TTFT: from branches ready to the first token, without compilation.  tokens/s: after the first token."]
    if "text" in measured:
        ratio = measured["text"].ttft_s / measured["caches"].ttft_s
        notes.append(f"TTFT from text is {ratio:.1f} times that from caches.")
    return Group(table, *(Text(note, style="dim") for note in notes))


def facts(values: Mapping[str, Any]) -> Table:
    """Show names and values, a line each; what is too long for its line goes on in the next."""
    table = Table(box=box.ROUNDED, border_style="dim", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                table.add_row(*_variant(each))
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        shown = _numbers(value) if isinstance(value, dict) else shown
        shown = "none" if shown is None else shown
        table.add_row(name, f"{shown:.4g}" if isinstance(shown, float) else str(shown))
    return table


def programs(listed: Sequence[Mapping[str, Any]]) -> Table:
    """Show the programs that a process can compile, a line each."""
    table = Table(box=box.ROUNDED, border_style="dim", title="programs", title_justify="left")
    for name in listed[0]:
        table.add_column(name, justify="right" if isinstance(listed[0][name], int) else "left")
    for program in listed:
        table.add_row(*map(str, program.values()))
    return table


def _variant(values: Mapping[str, Any]) -> tuple[str, str]:
    """Return a name from the texts among some values, and what the numbers are."""
    name = ", ".join(f"{key} {value}" for key, value in values.items() if isinstance(value, str))
    numbers = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if not isinstance(value, str))
    return name, numbers.replace("_", " ")


def compiled(values: Mapping[str, Any]) -> Group:
    """Show a report of `psynth compile`: does it fit, what fills the memory, what is sent, how fast it could be."""
    memory = Table(box=box.ROUNDED, border_style="dim")
    memory.add_column("memory of a device")
    memory.add_column("bytes", justify="right")
    for name in ("weight", "branch_cache", "own_cache", "temp", "needed"):
        if values[f"{name}_bytes"] is not None:
            memory.add_row(name.replace("_", " "), _bytes(values[f"{name}_bytes"]))
    memory.add_row("there is", _bytes(values["hbm_bytes_per_device"]))
    sent = Table(box=box.ROUNDED, border_style="dim")
    for column in ("collective", "runs", "bytes in all", "largest"):
        sent.add_column(column, justify="left" if column == "collective" else "right")
    for kind, each in (values["collectives"] or {}).items():
        sent.add_row(kind, f"{each['count']:,}", _bytes(each["bytes"]), _bytes(each["largest"]))
    lines = [compiled_line(values)]
    if values["pallas_calls"] is not None:
        copies, relaid = len(values["cache_sized_copies"]), len(values["weight_relayouts"])
        lines.append(
            f"{counted(values['pallas_calls'], 'kernel')} in the text; copies as large as a layer of the cache: {copies}; "
            f"weights brought into another layout: {relaid}"
        )
    lines.append(
        f"floor {1e3 * values['estimated_seconds']:.2f} ms: {_bytes(values['device_bytes'])} and "
        f"{values['device_flops'] / 1e12:.2f} TFLOP a device, {values['flops'] / 1e12:.2f} TFLOP in all"
    )
    return Group(*map(Text, lines), memory, *([sent] if values["collectives"] else []))


def compiled_line(values: Mapping[str, Any]) -> str:
    """Say in a line whether a compiled program fits, and if not, what to change."""
    name = f"{values['program']} of {values['model']} for {values['topology']}, mesh {values['mesh']}"
    if values["ok"]:
        used = f"{_bytes(values['needed_bytes'])} of {_bytes(values['hbm_bytes_per_device'])} a device"
        return f"{name}: fits, {used}, compiled in {values['compile_seconds']:.0f} s"
    return f"{name}: does not fit; {values['advice']}"


def _bytes(count: int) -> str:
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:,.0f} {units[0]}" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"


def _numbers(named: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


def printable(text: str) -> str:
    """Drop control characters but tabs and new lines: a model may write anything, also what a terminal obeys."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


class WordWrap:
    """Writes streamed text to a terminal of `width` columns, breaking lines between words."""

    def __init__(self, write: Callable[[str], object], width: int):
        self._write, self._width = write, width
        self._word, self._column = "", 0

    def push(self, piece: str) -> None:
        """Write what is complete: a word is, when a space follows, and so is a wide character (no spaces in Chinese)."""
        for char in printable(piece):
            if not char.isspace():
                self._word += char
                if cell_len(char) == 2:
                    self.finish()
                continue
            self.finish()
            if char == "\n":
                self._write("\n")
                self._column = 0
            elif self._column < self._width:
                self._write(" ")
                self._column += 1

    def finish(self) -> None:
        """Write the last word."""
        size = cell_len(self._word)
        if self._column and self._column + size > self._width:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += size
        self._word = ""
