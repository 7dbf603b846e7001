"""What people see of a run: workers as they write, then a table of what each way of answering took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from psynth_jax.synthesis.generate import OnToken, StreamedToken
from psynth_jax.synthesis.pipeline import SynthesisResult

TAIL = 320  # characters of a worker's text that its panel shows while it writes


@contextmanager
def watch_workers(console: Console, names: Sequence[str]) -> Iterator[OnToken]:
    """Show a panel per worker while they write; yield what takes their tokens."""
    texts = ["" for _ in names]

    def panels() -> Columns:
        shown = [Panel(Text(text[-TAIL:]), title=name, width=38, height=10) for name, text in zip(names, texts, strict=True)]
        return Columns(shown)

    with Live(panels(), console=console, refresh_per_second=8, transient=True) as live:

        def on_token(token: StreamedToken) -> None:
            texts[token.worker or 0] += token
            live.update(panels())

        yield on_token


def workers_table(names: Sequence[str], texts: Sequence[str], tokens: Sequence[int], reasons: Sequence[str]) -> Group:
    """Show each worker's whole text, its tokens, and whether it was cut off."""
    marks = {"length": " · cut off", "given": " · given", "stop": ""}
    return Group(
        *(
            Panel(
                Text(text.strip()), title=f"{name} · {count} tokens{marks[reason]}", title_align="left", border_style="dim"
            )
            for name, text, count, reason in zip(names, texts, tokens, reasons, strict=True)
        )
    )


def results_table(results: dict[str, SynthesisResult]) -> Table:
    """Compare ways of answering: time to first token, what was prefilled, what was read, and the speed after that."""
    table = Table(title_justify="left")
    for column in ("answer from", "TTFT", "tokens prefilled", "read from caches", "tokens/s"):
        table.add_column(column, justify="left" if column == "answer from" else "right")
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.ttft_s:.3f} s",
            f"{result.prompt_tokens:,}",
            f"{result.cached_tokens:,}",
            f"{result.decode_tokens_per_s:.1f}",
        )
    return table


def answers(results: dict[str, SynthesisResult]) -> Columns:
    """Show several answers side by side."""
    return Columns([Panel(Text(result.text.strip()), title=name, width=44) for name, result in results.items()])
