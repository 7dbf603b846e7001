"""The names of the kinds of synthetic questions: the default ones, and all."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

import pydantic

FactKind = Literal["lookup", "join", "count", "contradiction", "majority", "arithmetic"]
MoreKind = Literal["long", "judge", "merge", "steps", "yesno", "quote", "code"]
Kind: TypeAlias = Literal[FactKind, MoreKind]
KINDS: tuple[FactKind, ...] = get_args(FactKind)  # the default
MORE_KINDS: tuple[MoreKind, ...] = get_args(MoreKind)
ALL_KINDS: tuple[Kind, ...] = (*KINDS, *MORE_KINDS)


def _listed(value: Any) -> Any:
    """Take "lookup,join", as a command line has it, and a list for a tuple."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list):
        return tuple(value)
    return value


KindList: TypeAlias = Annotated[
    tuple[Kind, ...],
    pydantic.BeforeValidator(_listed),
    pydantic.Field(min_length=1),
]
