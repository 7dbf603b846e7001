"""Programs that are compiled while sequences wait for them, and others go on."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.engine.sequences import SequenceState, TokenSequence


class _Waiting(NamedTuple):
    """Sequences, since when they wait, and what tells that their programs are there."""

    sequences: Sequence[TokenSequence]
    begin: float
    futures: list[concurrent.futures.Future[Any]]

    @property
    def is_over(self) -> bool:
        """Whether all programs are there, or cannot be compiled."""
        return all(future.done() for future in self.futures)


class Compilations:
    """Which sequences wait for which programs."""

    def __init__(self, programs: Programs):
        """Begin with none."""
        self._programs = programs
        self._waiting: list[_Waiting] = []

    def __len__(self) -> int:
        """How many times somebody waits."""
        return len(self._waiting)

    def delay(self, sequence: TokenSequence) -> bool:
        """Whether a sequence waits for a program."""
        return any(sequence in each.sequences for each in self._waiting)

    def begin(
        self, calls: Sequence[ProgramCall], sequences: Sequence[TokenSequence]
    ) -> list[concurrent.futures.Future[Any]]:
        """Compile programs, and let sequences wait for all of them; return what tells that they are there."""
        begin = time.perf_counter()
        futures = [self._programs.begin(call) for call in calls]
        self._waiting.append(_Waiting(sequences, begin, futures))
        return futures

    def end(self) -> list[TokenSequence]:
        """Let sequences go on whose programs are there; those whose programs cannot be compiled end, and are returned."""
        failed = []
        for each in list(self._waiting):
            if not each.is_over:
                continue
            self._waiting.remove(each)
            seconds = time.perf_counter() - each.begin
            error = next((future.exception() for future in each.futures if future.exception()), None)
            for sequence in each.sequences:
                sequence.waited += seconds
                if error is not None and sequence.state is not SequenceState.ENDED:
                    sequence.end(error)
                    failed.append(sequence)
        return failed

    def are_unfinished(self) -> bool:
        """Whether somebody waits, and none of those may go on."""
        return bool(self._waiting) and not any(each.is_over for each in self._waiting)
