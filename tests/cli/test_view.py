"""What is drawn on a terminal, and that nothing is drawn on anything else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from psynth_jax.cli import view
from psynth_jax.synthesis.outputs import Piece, StreamedToken
from psynth_jax.synthesis.pipeline import SynthesisResult

END = frozenset({9})


def terminal(width: int = 60, height: int = 20, *, is_one: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=is_one, markup=False, highlight=False)


def drawn(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(console: Console, shown: object) -> list[str]:
    with console.capture() as capture:
        console.print(shown)
    return capture.get().splitlines()


def result(text: str, ttft_s: float = 0.5) -> SynthesisResult:
    return SynthesisResult(text, list(range(3)), ttft_s, 40, 1234, 7.5, "length")


def streamed(text: str, question: int, worker: int, token: int) -> StreamedToken:
    return StreamedToken(Piece(text, token, -1.0, (), None), question, worker)


class TestWatch:
    def write(self, console: Console) -> None:
        with view.watch(console, ["poet", "[/judge]"], END, 3) as push:
            push(0, streamed("roses", 0, 0, 1))
            push(1, streamed("[bold]guilty", 0, 1, 2))
            push(1, streamed("", 0, 1, 9))

    def test_terminal(self) -> None:
        console = terminal()
        self.write(console)
        for word in ("poet · 1 token", "[/judge] · 1 token", "roses", "[bold]guilty"):
            assert word in drawn(console)

    def test_elsewhere(self) -> None:
        console = terminal(is_one=False)
        self.write(console)
        assert drawn(console) == ""

    def test_interrupted(self) -> None:
        console = terminal()
        with pytest.raises(KeyboardInterrupt), view.watch(console, ["poet"], END, 3):
            raise KeyboardInterrupt
        assert drawn(console).rindex("\x1b[?25h") > drawn(console).rindex("\x1b[?25l")  # the cursor is back

    @pytest.mark.parametrize(("width", "count", "rows"), [(100, 3, 1), (60, 3, 2), (20, 3, 3), (120, 9, 3)])
    def test_panels_fit_the_screen(self, width: int, count: int, rows: int) -> None:
        console = terminal(width, 40, is_one=False)
        writing = [view._Writing("role", f"long text {number} " * 99) for number in range(count)]
        lines = plain(console, view._panels(console, writing))
        assert {len(line) for line in lines} == {width}
        assert len([line for line in lines if line.startswith("╭")]) == rows
        assert len(lines) < 40

    def test_the_end_of_a_long_text_is_seen(self) -> None:
        console = terminal(40, 8, is_one=False)
        lines = plain(console, view._panels(console, [view._Writing("role", "old " * 300 + "new")]))
        assert len(lines) == 7
        assert lines[-2].rstrip("│ ").endswith("new")

    def test_ended(self) -> None:
        writing = view._Writing("role")
        for number in range(3):
            assert not writing.ended
            writing.push(streamed("x", 0, 0, number), END, 3)
        assert (writing.text, writing.tokens, writing.ended) == ("xxx", 3, True)
        writing = view._Writing("role")
        writing.push(streamed("", 0, 0, 9), END, 3)
        assert (writing.tokens, writing.ended) == (0, True)


RESULTS = {"caches": result("from caches"), "text": result("other", 1.5), "question alone": result("third")}


class TestResults:
    def test_side_by_side(self) -> None:
        console = terminal(100, is_one=False)
        [line] = [line for line in plain(console, view.answers(console, RESULTS)) if "other" in line]
        assert "third" in line

    def test_narrow(self) -> None:
        console = terminal(50, is_one=False)
        lines = plain(console, view.answers(console, RESULTS))
        assert not [line for line in lines if "other" in line and "third" in line]
        assert {len(line) for line in lines} == {50}

    def test_table(self) -> None:
        lines = plain(terminal(120, is_one=False), view.results_table(RESULTS))
        [row] = [line for line in lines if "│ text" in line]
        assert [cell.strip() for cell in row.strip("│").split("│")] == [
            "text",
            "1.500 s",
            "40",
            "1,234",
            "3 · cut off",
            "7.5",
        ]
        assert "TTFT from text is 3.0 times that from caches." in lines


class TestWordWrap:
    def write(self, text: str, width: int, size: int) -> str:
        written: list[str] = []
        wrap = view.WordWrap(written.append, width)
        for first in range(0, len(text), size):
            wrap.push(text[first : first + size])
        wrap.finish()
        return "".join(written)

    @pytest.mark.parametrize("size", [1, 3, 100])
    @pytest.mark.parametrize("width", [5, 9, 20])
    def test_breaks_between_words(self, width: int, size: int) -> None:
        text = "ab abc abcde a\n  indented b\n\nc "
        written = self.write(text, width, size)
        assert written.split() == text.split()
        assert all(len(line.rstrip()) <= width or " " not in line.strip() for line in written.split("\n"))
        if width == 20:
            assert written == text

    def test_wide_characters_need_no_spaces(self) -> None:
        assert self.write("面包为什么会发", 6, 1) == "面包为\n什么会\n发"

    def test_words_are_held_back_until_they_are_whole(self) -> None:
        written: list[str] = []
        wrap = view.WordWrap(written.append, 80)
        wrap.push("two wor")
        assert "".join(written).strip() == "two"
        wrap.push("ds")
        wrap.finish()
        assert "".join(written) == "two words"

    def test_what_a_terminal_would_obey_is_dropped(self) -> None:
        assert self.write("a\x1b[2Jb\x07 c\rd", 80, 1) == "a[2Jb cd"
