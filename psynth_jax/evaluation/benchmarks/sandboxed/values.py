"""Values of Python as JSON, and back, so that 1, 1.0, (1,) and [1] stay what they are.

    3  0.5  "a"  null  true  [..]          as JSON has them
    {"t": [..]}  {"s": [..]}  {"z": [..]}  tuple, set, frozenset
    {"d": [[key, value], ..]}              dict, with keys of any type
    {"i": "1f"}  {"f": "nan"}              a large integer in base 16; a float that JSON lacks
    {"c": [re, im]}  {"b": "00ff"}         complex; bytes in base 16
    {"o": "Match"}                         any other object: the name of its class
    {"h": "9f86.."}                        a value of more than 1 MiB: the SHA-256 of its JSON, in
                                           the form that all equal values have

What a value of a subclass adds is lost.  This file is sent into the sandbox as it stands.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
from typing import Any

DEEPEST = 60
LONGEST = 1 << 20  # characters of a value's JSON
MOST = 2_000_000  # values inside of one value
MOST_ALIKE = 100  # keys with one hash in a set: with many, each look into it takes all day
_LARGE = 1 << 53  # above it, readers of JSON may round


class TooLargeError(Exception):
    """A value has too many parts, or they lie too deep in each other."""


class Encoder:
    """Encodes one value after the other; `left` is how many parts there may still be."""

    def __init__(self, most: int = MOST):
        self.left = most

    def encode(self, value: Any, depth: int = 0) -> Any:
        """Return a value as JSON values.  Raises `TooLargeError`."""
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            raise TooLargeError
        if value is None or isinstance(value, (bool, str)):
            return str.__str__(value) if isinstance(value, str) else value
        if isinstance(value, (int, float, complex)):
            return _number(value)
        if isinstance(value, (bytes, bytearray)):
            return {"b": bytes(value).hex()}
        if isinstance(value, dict):
            pairs = []
            for key, part in list(value.items()):
                pairs.append([self.encode(key, depth + 1), self.encode(part, depth + 1)])
            return {"d": pairs}
        if hasattr(value, "tolist") and not isinstance(value, type):
            return self.encode(value.tolist(), depth + 1)  # arrays and numbers of NumPy
        return self._series(value, depth)

    def _series(self, value: Any, depth: int) -> Any:
        for kind, tag in ((list, ""), (tuple, "t"), (set, "s"), (frozenset, "z")):
            if isinstance(value, kind):
                parts = [self.encode(part, depth + 1) for part in value]
                if kind in (set, frozenset):
                    parts.sort(key=repr)  # every process has another order of its sets
                return {tag: parts} if tag else parts
        return {"o": type(value).__name__}


def _number(value: int | float | complex) -> Any:
    if isinstance(value, int):
        whole = int(value)
        return whole if -_LARGE < whole < _LARGE else {"i": format(whole, "x")}
    if isinstance(value, float):
        real = float(value)
        return real if math.isfinite(real) else {"f": repr(real)}
    return {"c": [repr(value.real), repr(value.imag)]}


class Other:
    """What stands for an object that has no JSON form; it equals nothing."""

    def __init__(self, name: str):
        self.name = name


@dataclasses.dataclass(frozen=True)
class Large:
    """What stands for a value of more than 1 MiB: it equals the same value, exactly."""

    digest: str


def reported(value: Any) -> Any:
    """Return a value as JSON values; of a long one the digest.  Raises `TooLargeError`."""
    encoded = Encoder().encode(value)
    if len(json.dumps(encoded)) <= LONGEST:
        return encoded
    # 1.0 is longer than 1: whether equal values are long must not depend on how they are written.
    encoded = canonical(encoded)
    text = json.dumps(encoded)
    if len(text) <= LONGEST:
        return encoded
    return {"h": hashlib.sha256(text.encode()).hexdigest()}


def canonical(encoded: Any) -> Any:
    """Return the form of an encoded value that all have which equal it: 1 for 1.0 and True."""
    if isinstance(encoded, bool):
        return int(encoded)
    if isinstance(encoded, float):
        return _number(int(encoded)) if encoded.is_integer() else encoded
    if isinstance(encoded, list):
        return [canonical(part) for part in encoded]
    if not isinstance(encoded, dict):
        return encoded
    ((tag, content),) = encoded.items()
    if tag == "t":
        return {"t": canonical(content)}
    if tag in ("s", "z"):
        return {"s": sorted(canonical(content), key=repr)}
    if tag == "d":
        return {"d": sorted(canonical(content), key=repr)}
    if tag == "c" and float(content[1]) == 0:
        return canonical(_number(float(content[0])))
    if tag == "c":
        return {"c": [repr(float(part) + 0.0) for part in content]}  # -0.0 + 0.0 is 0.0
    return encoded


def decode(encoded: Any) -> Any:
    """Return the value that was encoded.  Raises `ValueError` for what no encoder writes."""
    return Decoder().decode(encoded)


class Decoder:
    """Decodes what may come from anybody; `left` is how many parts there may still be."""

    def __init__(self, most: int = MOST):
        self.left = most

    def decode(self, encoded: Any, depth: int = 0) -> Any:
        """Return the value that was encoded.  Raises `ValueError` for what no encoder writes."""
        self.left -= 1
        if depth > DEEPEST + 1 or self.left < 0:
            raise ValueError("the value is too deep or has too many parts")
        if encoded is None or isinstance(encoded, (bool, int, float, str)):
            return encoded
        if isinstance(encoded, list):
            return [self.decode(part, depth + 1) for part in encoded]
        if not isinstance(encoded, dict) or len(encoded) != 1:
            raise ValueError("no encoded value")
        ((tag, content),) = encoded.items()
        try:
            if tag in ("t", "s", "z"):
                return self._series(tag, content, depth)
            return self._dict(content, depth) if tag == "d" else _tagged(tag, content)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"no encoded value: {error}") from None

    def _series(self, tag: str, content: Any, depth: int) -> Any:
        parts = [self.decode(part, depth + 1) for part in content]
        if tag == "t":
            return tuple(parts)
        refuse_alike(parts)
        return set(parts) if tag == "s" else frozenset(parts)

    def _dict(self, content: Any, depth: int) -> Any:
        keys, parts = [], []
        for key, part in content:
            keys.append(self.decode(key, depth + 1))
            parts.append(self.decode(part, depth + 1))
        refuse_alike(keys)
        return dict(zip(keys, parts, strict=True))


def refuse_alike(keys: list[Any]) -> None:
    """Raise `ValueError` where many keys have one hash.  Whole numbers can be chosen to have it."""
    if len(keys) <= MOST_ALIKE:
        return
    counts = collections.Counter(hash(key) for key in keys)
    if max(counts.values()) > MOST_ALIKE:
        raise ValueError("too many keys have the same hash")


def _tagged(tag: str, content: Any) -> Any:
    if tag == "i":
        return int(content, 16)
    if tag == "f":
        return float(content)
    if tag == "c":
        return complex(float(content[0]), float(content[1]))
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "h":
        return Large(str(content))
    if tag == "o":
        return Other(str(content))
    raise ValueError(f"no encoded value has the tag {tag!r}")
