"""JSON from files, by content: one value after the other, or the elements of one list.

    {"a": 1}            {                [{"a": 1},
    {"a": 2}              "a": 1          {"a": 2}]
    JSON lines          } one object     a list, on one line or on many

All of these are read under any name.  One value at a time is in memory, never the whole file.

What JSON readers disagree about:

  NaN, Infinity       null: the value is missing
  a key twice         an error: nobody knows which one is meant
  half a surrogate    is left to those who know which texts matter
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from psynth_jax.data.text_files import text_chunks
from psynth_jax.errors import DataError, InputError
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.storage.staging import staged_file

_BLANK = re.compile(r"[ \t\n\ufeff]*")  # files that were joined have byte-order marks inside
LONGEST = 1 << 30  # characters of one value
# A text that is cut off inside of a literal or an escape is an error so many characters before its end.
_LONGEST_LITERAL = 16


class _TwiceError(ValueError):
    """A key of an object is there twice."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _TwiceError(f"the key {twice!a} is there twice in one object")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=lambda name: None)


def read_json_values(path: str | AnyPath, shown: str | None = None) -> Iterator[tuple[int, Any]]:
    """Go through the JSON values of a file, plain or gzipped, with their numbers, from 1.

    A number is that of the line in which the value begins, or of the element of a list.

    Args:
      path: of the file, here or in a bucket.
      shown: what it is called in messages; None is its path.

    Raises:
      DataError: naming the file, and the line where something is not JSON.
    """
    place = as_path(path)
    shown = shown or str(place)
    if isinstance(place, BucketPath):
        try:
            place = staged_file(place)
        except InputError as error:
            raise DataError(str(error)) from None
    text = _Text(text_chunks(place, shown), shown)
    if text.next_is("["):
        yield from enumerate(_elements(text), start=1)
        return
    while text.skip_blank():
        line = text.line
        yield line, text.value()


def _elements(text: _Text) -> Iterator[Any]:
    """Go through the elements of the list that begins here; nothing may follow it."""
    text.take("[")
    if not text.next_is("]"):
        yield text.value()
        while text.next_is(","):
            text.take(",")
            text.skip_blank()
            yield text.value()
    text.take("]")
    if text.skip_blank():
        raise text.error("Extra data", text.at)


class _Text:
    """The text of a file, of which only what is being read is in memory.

    text: what there is.  at: the place in it that is read next.  line: of that place, from 1.
    """

    def __init__(self, chunks: Iterator[str], shown: str):
        self.text, self.at, self.line = "", 0, 1
        self._chunks = chunks
        self._shown = shown
        self._gone = 0  # characters of the first line of `text` that are not in memory any more

    def skip_blank(self) -> bool:
        """Go to the next character that is not blank; return whether there is one."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            assert blank is not None  # it may be empty
            self._go_to(blank.end())
            if self.at < len(self.text):
                return True
            if not self._more():
                return False

    def next_is(self, char: str) -> bool:
        return self.skip_blank() and self.text[self.at] == char

    def take(self, char: str) -> None:
        """Go past a character.  Raises `DataError` when another one is there."""
        if not self.next_is(char):
            expected = "',' delimiter" if char == "]" else repr(char)
            raise self.error(f"Expecting {expected}", self.at)
        self._go_to(self.at + 1)

    def value(self) -> Any:
        """Decode the value that begins here, and go past it.

        Raises `DataError` for what is not JSON.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._may_be_cut_off(error) and self._more():
                    continue
                raise self.error(error.msg, error.pos) from None
            except _TwiceError as error:
                raise DataError(f"{self._shown}:{self.line}: {error}") from None
            # A number of thousands of digits, or lists thousands deep.
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self._shown}:{self.line}: JSON that cannot be read: {error}") from None
            # A number that ends with the text may have more digits in the next chunk.
            if end < len(self.text) or not self._more():
                self._go_to(end)
                return value

    def error(self, reason: str, place: int) -> DataError:
        """Return the error of a place in the value that begins here."""
        line = self.line + self.text.count("\n", self.at, place)
        line_end = self.text.rfind("\n", 0, place)
        column = place - line_end if line_end >= 0 else self._gone + place + 1
        # Where a line is torn, the next one seems wrong: name the line in which the value begins.
        place_shown = f"column {column}" if line == self.line else f"line {line} column {column}"
        return DataError(f"{self._shown}:{self.line}: not JSON: {reason} at {place_shown}")

    def _may_be_cut_off(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _LONGEST_LITERAL

    def _go_to(self, place: int) -> None:
        self.line += self.text.count("\n", self.at, place)
        self.at = place

    def _more(self) -> bool:
        """Read as much again as is left, so that a long value is decoded only a few times.

        Returns whether there was any more.
        """
        length = len(self.text) - self.at
        if length > LONGEST:
            raise DataError(f"{self._shown}:{self.line}: a JSON value is longer than {LONGEST:,} characters")
        more, wanted = [], length
        for chunk in self._chunks:
            more.append(chunk)
            wanted -= len(chunk)
            if wanted < 0:
                break
        if not more:
            return False
        line_end = self.text.rfind("\n", 0, self.at)
        self._gone = self.at - line_end - 1 if line_end >= 0 else self._gone + self.at
        self.text, self.at = "".join([self.text[self.at :], *more]), 0
        return True
