"""How to decode, as a caller says it, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from psynth_jax.engine.sequences import SequenceSampling
from psynth_jax.errors import InputError, shown
from psynth_jax.unicode_text import checked_text

Stop: TypeAlias = str | int | Sequence[str | int] | None

# Below this a temperature or a top_p leaves the most likely token alone.  In float32, and on devices that flush denormals
# to zero, nothing smaller could be computed with.
LEAST = 1e-6
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How to decode.

    temperature 0 is greedy, as is any temperature or top_p below 1e-6.  top_k 0 and top_p 1 are off; both may be on, top_k
    cuts first.  min_p: tokens less likely than this share of the most likely one are out of reach;
    0 is off.
    stop: texts or token ids that end a row, besides the model's own end tokens; one, several or
    None.  They are not part of the output.  NumPy scalars are taken as the numbers that they are.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: Stop = ()
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Raise `InputError` naming the option that is out of range."""
        # NumPy's small numbers overflow in sums with lengths, and in comparisons with large ones.
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        ranges = (
            ("max_new_tokens", is_whole(self.max_new_tokens) and self.max_new_tokens >= 1, "a whole number of at least 1"),
            ("temperature", is_number(self.temperature) and 0 <= self.temperature <= _LARGEST, "0 (greedy) or more"),
            ("top_p", is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", is_whole(self.top_k) and self.top_k >= 0, "a whole number, 0 (off) or more"),
            ("min_p", is_number(self.min_p) and 0 <= self.min_p <= 1, "0 (off) to 1"),
            ("stop", all(_is_stop(stop) for stop in self.stops), "texts that are not empty, or token ids"),
        )
        for name, fine, right in ranges:
            if not fine:
                raise InputError(f"{name} is {shown(getattr(self, name))}; it must be {right}")
        for stop in self.stops:
            if isinstance(stop, str):
                checked_text(stop, "a stop text")
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "top_p", float(self.top_p))
        object.__setattr__(self, "min_p", float(self.min_p))

    @property
    def stops(self) -> tuple[str | int, ...]:
        """`stop` as a tuple."""
        if self.stop is None:
            return ()
        several = isinstance(self.stop, Sequence) and not isinstance(self.stop, str | bytes | bytearray)
        return tuple(self.stop) if several else (self.stop,)  # type: ignore[arg-type,return-value]

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature < LEAST or self.top_p < LEAST


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python number that it is, and anything else as it is."""
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if isinstance(value, np.floating) else value


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, NumPy's too."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number, NumPy's too."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_stop(value: object) -> bool:
    if isinstance(value, str):
        return value != ""
    return is_whole(value) and int(value) >= 0  # type: ignore[call-overload]


def checked_seed(seed: object) -> int:
    """Return a seed as an int.  Raises `InputError` when it is not a whole number."""
    if not is_whole(seed):
        raise InputError(f"seed must be a whole number; {shown(seed)} is none")
    return int(seed)  # type: ignore[call-overload]


def sampling_of(options: SamplingOptions, seed: tuple[int, int]) -> SequenceSampling:
    """Return how a sequence is sampled.  seed: (seed, number of the row within its question)."""
    temperature = 0.0 if options.greedy else options.temperature
    return SequenceSampling(temperature, options.top_p, options.top_k, seed, options.min_p)
