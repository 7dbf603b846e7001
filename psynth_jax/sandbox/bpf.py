"""Assemble the classic BPF program that seccomp runs at every system call.

A filter reads a `struct seccomp_data` and returns a verdict:

    byte   0        4       8                     16         24              56
           number | arch  | instruction pointer | argument 0 | argument 1 ... |

An argument has 64 bits, the lower word first (both machines are little-endian).  The kernel takes
most arguments as 32 bits, so that a test looks at the lower word; a pointer needs both words.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import Literal

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN, _JUMP = 0x20, 0x15, 0x35, 0x54, 0x06, 0x05
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000

Word = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def fails_with(errno: int) -> int:
    """Return the verdict that makes a call fail with this errno."""
    return 0x00050000 | errno


@dataclasses.dataclass(frozen=True)
class Test:
    """A test of one argument; where it holds, the call is denied.

    `in`: the masked value is one of `values`.  `not in`: it is none of them.
    `pointer`: the argument is not NULL.
    """

    argument: int
    kind: Literal["in", "not in", "pointer"]
    values: tuple[int, ...] = ()
    mask: int = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to a call: it fails with `errno`, always or where one of the tests holds."""

    number: int
    errno: int
    tests: tuple[Test, ...] = ()


def assemble(
    architecture: int,
    last_known: int,
    unknown_errno: int,
    rules: Sequence[Rule],
) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    A call of another architecture kills the process.  A number above `last_known` fails with
    `unknown_errno`; x32 numbers, which have bit 30 set, are above it as well.  A number without a
    rule is allowed.
    """
    words: list[Word] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, last_known + 1),
        (_RETURN, 0, 0, fails_with(unknown_errno)),
    ]
    for rule in rules:
        body = _body(rule)
        words.append((_EQUAL, 0, len(body), rule.number))
        words += body
    words.append((_RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *word) for word in words)


def _body(rule: Rule) -> list[Word]:
    """Return what is run for one call.  It ends with a verdict: the number is lost by then."""
    deny: Word = (_RETURN, 0, 0, fails_with(rule.errno))
    if not rule.tests:
        return [deny]
    words: list[Word] = []
    for test in rule.tests:
        words += _test(test, deny)
    return [*words, (_RETURN, 0, 0, ALLOW)]


def _test(test: Test, deny: Word) -> list[Word]:
    low = _ARGUMENTS_AT + 8 * test.argument
    if test.kind == "pointer":
        return [
            (_LOAD, 0, 0, low),
            (_EQUAL, 0, 2, 0),
            (_LOAD, 0, 0, low + 4),
            (_EQUAL, 1, 0, 0),
            deny,
        ]
    words: list[Word] = [(_LOAD, 0, 0, low), (_AND, 0, 0, test.mask)]
    for position, value in enumerate(test.values):
        # In both kinds one word stands after the comparisons: a match jumps over it.
        still_to_come = len(test.values) - 1 - position
        words.append((_EQUAL, still_to_come + 1, 0, value))
    if test.kind == "in":
        # No match: jump over the denial.  A match has jumped over this jump.
        words.append((_JUMP, 0, 0, 1))
    return [*words, deny]
