"""How the XLA form cuts its work, and what else there is to try; the heuristic is a pair of constants in `xla.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

LEAST_SLOTS = 16
MOST_LOGITS = 1 << 19  # query tokens x slots of a step: more would be 2 MiB of logits and as much of weights for every head


@dataclasses.dataclass(frozen=True)
class XlaTiles:
    """Query tokens and slots of one step; where there are fewer of them, all."""

    tokens: int
    slots: int


def problem(cut: XlaTiles, sizes: Mapping[str, int]) -> str | None:
    """Say why tiles cannot be those of a key of these sizes; None: they can."""
    for name, value in (("tokens", cut.tokens), ("slots", cut.slots)):
        if value > sizes[name]:
            return f"{name} {value} is more than {sizes[name]}"
    if cut.slots < min(LEAST_SLOTS, sizes["slots"]):
        return f"slots {cut.slots} is less than {LEAST_SLOTS}"
    if cut.tokens * cut.slots > MOST_LOGITS:
        return f"tokens {cut.tokens} times slots {cut.slots} is more than {MOST_LOGITS} logits of a head"
    return None


def candidates(sizes: Mapping[str, int], heuristic: XlaTiles) -> Iterator[XlaTiles]:
    """Go through tiles worth measuring: powers of two around what keeps a block in a core's cache."""
    for tokens in sorted({min(64 << n, sizes["tokens"]) for n in range(5)}):
        for slots in sorted({min(64 << n, sizes["slots"]) for n in range(7)}):
            cut = XlaTiles(tokens, slots)
            if problem(cut, sizes) is None:
                yield cut
