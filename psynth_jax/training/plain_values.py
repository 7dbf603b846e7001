"""Plain values out of YAML or JSON: mappings with text keys, lists, text, numbers, booleans, null.

Whatever passes can be written as JSON and read back.  Aliases are written out, and what they stand for is counted first: a
few lines of them can stand for more values than memory holds.  Knows no config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from psynth_jax.errors import ConfigError
from psynth_jax.files import read_text
from psynth_jax.foreign import reason
from psynth_jax.storage.paths import AnyPath

MOST_VALUES = 20_000
DEEPEST = 32

# What PyYAML raises for malformed text, and its constructors for scalars that do not hold what their tag says.
BAD_YAML = (
    yaml.YAMLError,
    ValueError,
    OverflowError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RecursionError,
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises `ConfigError`, in one line, for a file that cannot be read, holds something else, or gives a key twice.
    """
    text = read_text(path, ConfigError)
    try:
        values = _plain(parse_value(text))
    except BAD_YAML as error:
        raise ConfigError(f"cannot read {path}: {_reason(error)}") from None
    return _mapping(values, path)


def read_json(path: str | AnyPath) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.  Raises `ConfigError` as `read_yaml` does."""
    text = read_text(path, ConfigError)
    try:
        values = _plain(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {_reason(error)}") from None
    return _mapping(values, path)


def _mapping(values: Any, path: str | AnyPath) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, such as workdir, model, data and train")
    return values


def parse_value(text: str) -> Any:
    """Read YAML.  Raises `yaml.YAMLError`, or what PyYAML's constructors raise for malformed scalars."""
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return reason(error)


def _expanded_size(node: yaml.Node, known: dict[int, int], depth: int = 0) -> int:
    """Return how many values a node stands for with every alias written out.

    Raises `yaml.YAMLError` for more than a config can need, and for an alias inside of what it stands for.
    """
    if depth > DEEPEST:
        raise yaml.YAMLError("it is nested too deeply")
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError(f"an alias contains itself, line {node.start_mark.line + 1}")
        return known[id(node)]
    known[id(node)] = 0  # until it is known: it is being counted
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_expanded_size(child, known, depth + 1) for child in children)
    if size > MOST_VALUES:
        raise yaml.YAMLError(f"it holds more than {MOST_VALUES:,} values")
    known[id(node)] = size
    return size


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a copy that shares nothing, of values that JSON can hold.  Raises `ValueError` for text that it cannot."""
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        return {_plain_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, str):
        return _checked_text(value)
    return value  # what is no JSON value, such as a date, has the wrong type for every field


def _plain_key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"the key {key!r} is not text")
    return _checked_text(key)


def _checked_text(text: str) -> str:
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text) or "\0" in text:
        raise ValueError(f"{text!a} is not text: it has a zero byte, or half of a surrogate pair")
    return text


def override(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `key=value` pairs, whose keys are dotted paths and whose values are YAML, in a mapping.

    Raises `ConfigError` for what is no such pair, a key that is given twice, and a place that does not exist.
    """
    seen = set()
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{_short(pair)!r} is no override: write key=value, such as train.steps=100")
        if key in seen:
            raise ConfigError(f"{_short(key)} is given twice")
        seen.add(key)
        try:
            value = _plain(parse_value(text))
        except BAD_YAML as error:
            raise ConfigError(f"the value of {_short(key)} is not valid: {_short(text)} ({_reason(error)})") from None
        _set(values, key.split("."), value)


def _short(text: str) -> str:
    shown = text.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def _set(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    inside: Any = values
    shown = _short(".".join(path))
    if len(path) > DEEPEST:
        raise ConfigError(f"there is nothing at {shown} to be set")
    for part in path[:-1]:
        if isinstance(inside, list) and _is_place(part, inside):
            inside = inside[int(part)]
        elif isinstance(inside, dict):
            inside = inside.setdefault(part, {})
        else:
            raise ConfigError(f"there is nothing at {shown} to be set")
    if isinstance(inside, list) and _is_place(path[-1], inside):
        inside[int(path[-1])] = value
    elif isinstance(inside, dict):
        inside[path[-1]] = value
    else:
        raise ConfigError(f"there is nothing at {shown} to be set")


def _is_place(part: str, values: Sequence[Any]) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(values)


def as_tuples(value: Any) -> Any:
    """Turn lists into tuples, which is what a frozen config holds."""
    if isinstance(value, Mapping):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may not be given twice, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} is given twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(  # YAML 1.1 takes 1e-4 for a text
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)
