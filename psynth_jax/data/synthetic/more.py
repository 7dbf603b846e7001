"""The content of more.yaml: what the kinds beside the first six are made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any


@dataclasses.dataclass(frozen=True)
class MoreWords:
    """Templates by kind; see more.yaml for what stands in them."""

    questions: Mapping[str, Sequence[str]]
    comparisons: Mapping[str, Mapping[str, Sequence[str]]]
    quotes: Sequence[Mapping[str, Any]]
    phrase_parts: Mapping[str, Sequence[str]]
    lists: Sequence[Mapping[str, Any]]
    long_fillers: Sequence[str]
    long_slots: Mapping[str, Sequence[str]]
    long_headings: Sequence[str]
    long_joints: Sequence[str]
    solutions: Mapping[str, Sequence[str]]
    candidates: Mapping[str, Sequence[str]]


@functools.cache
def more_words() -> MoreWords:
    """Read more.yaml."""
    return MoreWords(**read_yaml("more.yaml"))


def read_yaml(name: str) -> dict[str, Any]:
    """Read a YAML file of this package."""
    import yaml

    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
