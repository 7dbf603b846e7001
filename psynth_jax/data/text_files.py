r"""Text files as users have them: plain or gzipped, with a byte-order mark or not, with any line ends.

    bytes ──gzip, by content──> UTF-8, a mark in front dropped ──\r\n and \r become \n──> chunks of text, or lines

What comes before a damaged place is given before the error is raised.  Knows no format.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from psynth_jax.errors import DataError
from psynth_jax.files import refuse_special

CHUNK = 1 << 20  # bytes that are read at a time
LONGEST_LINE = 1 << 27  # characters
_GZIP = b"\x1f\x8b"
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

_Binary: TypeAlias = io.BufferedReader | gzip.GzipFile


def text_chunks(path: Path, shown: str) -> Iterator[str]:
    """Go through the text of a file, chunk by chunk.

    Args:
      path: of the file.
      shown: what it is called in messages.

    Raises:
      DataError: it cannot be read, is no regular file, is damaged, or is not UTF-8, with the line.
    """
    lines = 0
    with _opened(path, shown) as file:
        # Not the codec for marks, utf-8-sig: it does not say where the bytes are that it refuses.
        decoder = codecs.getincrementaldecoder("utf-8")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        first = True
        while True:
            content = _read(file, shown, lines)
            if first:
                _refuse_other_encoding(content, shown)
                content = content.removeprefix(codecs.BOM_UTF8)
                first = False
            try:
                text, wrong = decoder.decode(content, final=not content), False
            except UnicodeDecodeError as error:
                # The part before the wrong byte is good: rows in it are given, and lines counted.
                text, wrong = error.object[: error.start].decode("utf-8"), True
            text = newlines.decode(text, final=wrong or not content)
            lines += text.count("\n")
            if text:
                yield text
            if wrong:
                raise DataError(f"{shown}:{lines + 1}: not UTF-8 text")
            if not content:
                return


def text_lines(path: Path, shown: str) -> Iterator[tuple[int, str]]:
    """Go through the lines of a file with their numbers, from 1, each without its end.

    Arguments and errors as for `text_chunks`; a line of more than `LONGEST_LINE` characters is refused, too.
    """
    number, rest = 0, ""
    for chunk in text_chunks(path, shown):
        *complete, rest = (rest + chunk).split("\n")
        for line in complete:
            number += 1
            yield number, line
        if len(rest) > LONGEST_LINE:
            raise DataError(f"{shown}:{number + 1}: the line is longer than {LONGEST_LINE:,} characters")
    if rest:
        yield number + 1, rest


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[_Binary]:
    refuse_special(path, DataError)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror or error}") from None
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"cannot read {shown!r}: {error}") from None
    with file:
        # Names lie: browsers unpack what they download and leave the name, or the other way round.
        zipped = file.peek(len(_GZIP))[: len(_GZIP)] == _GZIP
        yield gzip.GzipFile(fileobj=file) if zipped else file


def _read(file: _Binary, shown: str, lines: int) -> bytes:
    try:
        return file.read1(CHUNK)  # not read, which gives nothing of what it read before a damaged place
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{shown} is damaged after line {lines}: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror or error}") from None


def _refuse_other_encoding(content: bytes, shown: str) -> None:
    encoding = next((name for mark, name in _OTHER_MARKS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content[:4] and content[:4].strip(b"\0"):
        encoding = "UTF-16 or UTF-32"  # without a mark: each ASCII character brings zero bytes
    if encoding is not None:
        raise DataError(f"{shown} is {encoding} text: save it as UTF-8")
