"""Damage: a pure function of a file's bytes and a seed, told in words, so that a failure can be made again.

bytes       flips, cuts, ranges that are zeroed, doubled, swapped or inserted
tokens      words and signs of a text, swapped, doubled or left out
tree        a value of JSON, YAML, a safetensors header or GGUF metadata replaced; keys deleted, doubled or renamed
"""

from __future__ import annotations

import copy
import json
import re
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np

# As they are written in JSON, since some of them are no JSON at all.
VALUES = {
    "null": "null",
    "true": "true",
    "-1": "-1",
    "0": "0",
    "1.5": "1.5",
    "2**31": str(2**31),
    "2**63": str(2**63),
    "2**64": str(2**64),
    "1e308": "1e308",
    "1e999": "1e999",
    "5e-324": "5e-324",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "NaN": "NaN",
    "an empty text": '""',
    "a long text": json.dumps("x" * 10_000),
    "a lone surrogate": r'"\ud800"',
    "a zero byte": r'"a\u0000b"',
    "a path": '"../../etc/passwd"',
    "an empty list": "[]",
    "an empty object": "{}",
    "a list of null": "[null]",
    "an object with an odd key": r'{"\ud800": 1}',
    "lists 5000 deep": "[" * 5000 + "]" * 5000,
    "objects 300 deep": '{"a":' * 300 + "1" + "}" * 300,
    "an integer of 5000 digits": "9" * 5000,
    "a text of 400 digits": json.dumps("9" * 400),
}
_YAML = {"Infinity": ".inf", "-Infinity": "-.inf", "NaN": ".nan"}
YAML_VALUES = {name: _YAML.get(name, text) for name, text in VALUES.items()} | {
    "an unknown alias": "*nowhere",
    "an alias of itself": "&a [*a]",
    "a Python object": "!!python/object/apply:os.getcwd []",
    "a day that is none": "2001-13-45",
    "a day": "2001-12-14",
    "a wrong timestamp": "!!timestamp x",
    "a wrong bool": "!!bool x",
    "a wrong int": "!!int x",
    "a wrong float": "!!float x",
    "wrong binary": "!!binary x",
    "a set": "!!set {a, b}",
    "pairs": "!!pairs [a: 1]",
    "a merge of nothing": "{<<: 1}",
    "a key that is a list": "{? [a] : 1}",
    "a sexagesimal": "1:30:00",
    "nine lists of nine": "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], "
    "&d [*c,*c,*c,*c,*c,*c,*c,*c,*c], &e [*d,*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e,*e], "
    "&g [*f,*f,*f,*f,*f,*f,*f,*f,*f], [*g,*g,*g,*g,*g,*g,*g,*g,*g]]",
}
_HOLE = "\u241fhole\u241f"
_TWICE = "\u241ftwice\u241f"

Mutated = tuple[bytes, str]


# ----------------------------------------------------------------------------------------------------------- as bytes


def damage_bytes(content: bytes, random: Random) -> Mutated:
    """Change some bytes, or some ranges of them."""
    if not content:
        return b"\0", "a zero byte in an empty file"
    first, size = random.randrange(len(content)), random.randint(1, max(len(content) // 4, 1))
    end = min(first + size, len(content))
    there = random.randrange(len(content))
    inserted = random.randbytes(min(size, 64))
    kind = random.choice(("flip", "flip", "flips", "cut", "head", "zero", "double", "swap", "insert", "end"))
    if kind in ("flip", "flips"):
        changed = bytearray(content)
        places = [random.randrange(len(content)) for _ in range(1 if kind == "flip" else 8)]
        for place in places:
            changed[place] ^= 1 << random.randrange(8)
        return bytes(changed), f"bits flipped in bytes {places}"
    made = {
        "cut": content[:first],
        "head": content[min(size, 64) :],
        "zero": content[:first] + b"\0" * (end - first) + content[end:],
        "double": content[:end] + content[first:end] + content[end:],
        "swap": content[:there] + content[first:end] + content[there:],
        "insert": content[:there] + inserted + content[there:],
        "end": content + inserted,
    }[kind]
    return made, f"{kind} at {first} to {end}, {there}"


def damage_tokens(content: bytes, random: Random) -> Mutated:
    """Swap, double or leave out words and signs."""
    tokens = re.findall(rb"\w+|\s+|[^\w\s]", content)
    if len(tokens) < 2:
        return damage_bytes(content, random)
    one, other = random.randrange(len(tokens)), random.randrange(len(tokens))
    kind = random.choice(("swap", "double", "drop"))
    changed = list(tokens)
    if kind == "swap":
        changed[one], changed[other] = tokens[other], tokens[one]
    elif kind == "double":
        changed.insert(other, tokens[one])
    else:
        del changed[one]
    return b"".join(changed), f"{kind} of tokens {one} {tokens[one][:20]!r} and {other} {tokens[other][:20]!r}"


# ----------------------------------------------------------------------------------------------------------- as trees


def _place(tree: Any, random: Random) -> tuple[Any, ...]:
    """Choose a value by going down at random, so that one long list does not take nearly all of the choices."""
    path: tuple[Any, ...] = ()
    while isinstance(tree, dict | list) and tree and (not path or random.random() < 0.8):
        key = random.choice([*tree] if isinstance(tree, dict) else range(len(tree)))
        if not path and random.random() < 0.03:
            break
        path, tree = (*path, key), tree[key]
    return path


def damage_tree(tree: Any, random: Random, values: dict[str, str] = VALUES) -> tuple[str, str]:
    """Return the JSON text of a tree with one value or key changed."""
    tree = copy.deepcopy(tree)
    path = _place(tree, random)
    inside = tree
    for part in path[:-1]:
        inside = inside[part]
    shown = "/".join(map(str, path)) or "everything"
    kinds = ["replace"] * 6
    if path and isinstance(inside, dict):
        kinds += ["delete", "double", "rename"]
    kind = random.choice(kinds)
    name = random.choice([*values])
    if kind == "replace":
        if not path:
            return values[name], f"{shown} is {name}"
        inside[path[-1]] = _HOLE
        return _text(tree, values[name]), f"{shown} is {name}"
    if kind == "double":
        inside[path[-1] + _TWICE] = _HOLE
        return _text(tree, values[name]), f"{shown} comes twice, then as {name}"
    value = inside.pop(path[-1])
    if kind == "rename":
        renamed = random.choice(("", "x", "\ud800", path[-1].upper(), path[-1] + " ", "x" * 10_000, "a.b/c"))
        inside[renamed] = value
        return _text(tree), f"{shown} is called {renamed[:20]!r}"
    return _text(tree), f"{shown} is deleted"


def _text(tree: Any, value: str = "") -> str:
    return json.dumps(tree, indent=1).replace(json.dumps(_HOLE), value).replace(json.dumps(_TWICE)[1:-1], "")


def damage_json(content: bytes, random: Random) -> Mutated:
    """Change a JSON file: mostly a value of it."""
    if random.random() < 0.2:
        return random.choice((damage_bytes, damage_tokens))(content, random)
    text, said = damage_tree(json.loads(content), random)
    return text.encode(), said


def damage_json_lines(content: bytes, random: Random) -> Mutated:
    """Change one line."""
    if random.random() < 0.3:
        return random.choice((damage_bytes, damage_tokens))(content, random)
    lines = content.splitlines()
    number = random.randrange(len(lines))
    text, said = damage_tree(json.loads(lines[number]), random)
    lines[number] = " ".join(text.split("\n")).encode()
    return b"\n".join(lines) + b"\n", f"line {number + 1}: {said}"


def damage_yaml(content: bytes, random: Random) -> Mutated:
    """Change a YAML file, which is written in the flow style that JSON is a part of."""
    import yaml

    if random.random() < 0.3:
        return random.choice((damage_bytes, damage_tokens))(content, random)
    text, said = damage_tree(yaml.safe_load(content), random, YAML_VALUES)
    return text.encode(), said


def damage_safetensors(content: bytes, random: Random) -> Mutated:
    """Change the header of a safetensors file, its length, or any bytes."""
    chance = random.random()
    if chance < 0.3:
        return damage_bytes(content, random)
    (size,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + size], content[8 + size :]
    if chance < 0.4:
        length = random.choice((0, 1, size - 1, size + 1, size + len(body), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + header + body, f"the header's length is {length}"
    if chance < 0.5:
        changed, said = damage_tokens(header, random)
    else:
        text, said = damage_tree(json.loads(header), random)
        changed = text.encode()
    return struct.pack("<Q", len(changed)) + changed + body, f"header: {said}"


def damage_finite(content: bytes, random: Random) -> Mutated:
    """Write a number that is not finite into the tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    place = 8 + size + 4 * random.randrange((len(content) - 8 - size) // 4)
    word = random.choice((b"\xff\xff\xff\xff", b"\x00\x00\x80\x7f", b"\x80\x7f\x80\x7f"))
    return content[:place] + word + content[place + 4 :], f"{word.hex()} at {place}"


# --------------------------------------------------------------------------------------------------------------- GGUF

_TYPES = gguf.GGUFValueType
_ODD: dict[_TYPES, Sequence[Any]] = {
    _TYPES.BOOL: (True, False),
    _TYPES.UINT8: (0, 255),
    _TYPES.INT32: (-1, 0, -(2**31)),
    _TYPES.UINT32: (0, 1, 2**31, 2**32 - 1),
    _TYPES.INT64: (-1, 2**63 - 1, -(2**63)),
    _TYPES.UINT64: (0, 2**63, 2**64 - 1),
    _TYPES.FLOAT32: (float("nan"), float("inf"), -0.0, 1e-45, 3e38),
    _TYPES.FLOAT64: (float("nan"), float("-inf"), 1e308),
    _TYPES.STRING: ("", "x" * 10_000, "\0", "none"),
}
_ODD_LISTS: dict[_TYPES, Sequence[list[Any]]] = {
    _TYPES.INT32: ([0], [-1] * 3, [2**31 - 1]),
    _TYPES.FLOAT32: ([float("nan")], [0.5] * 300),
    _TYPES.STRING: ([""], ["a", "a"], ["a b"] * 300, ["x" * 10_000]),
}


def damage_gguf(content: bytes, random: Random) -> Mutated:
    """Change a value of the metadata, its type or its key, or any bytes."""
    if random.random() < 0.3:
        return damage_bytes(content, random)
    with tempfile.TemporaryDirectory() as scratch:
        return _damage_metadata(content, random, Path(scratch))


def _damage_metadata(content: bytes, random: Random, scratch: Path) -> Mutated:
    original = scratch / "original.gguf"
    original.write_bytes(content)
    reader = gguf.GGUFReader(original)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    chosen, kind = random.choice([*fields]), random.choice(("value", "value", "value", "list", "delete", "rename", "byte"))
    writer = gguf.GGUFWriter(scratch / "damaged.gguf", "")
    writer.kv_data[0].clear()
    said = ""
    for key, field in fields.items():
        value, types = field.contents(), [*field.types, None]
        if key == chosen:
            if kind == "delete":
                said = "is deleted"
                continue
            if kind == "rename":
                said, key = "is renamed", key + "x"
            elif kind == "value":
                types = [random.choice([*_ODD]), None]
                value = random.choice(_ODD[types[0]])
                said = f"is {types[0].name} {str(value)[:20]!r}"
            elif kind == "list":
                types = [_TYPES.ARRAY, random.choice([*_ODD_LISTS])]
                value = random.choice(_ODD_LISTS[types[1]])
                said = f"is a list of {types[1].name}, {str(value)[:20]!r}"
            elif isinstance(value, list) and value:
                value = list(value)
                place = random.randrange(len(value))
                value[place] = "" if isinstance(value[place], str) else random.choice((0, 1, 6, 100))
                said = f"has {value[place]!r} at {place}"
            else:
                said = "stays"
        writer.add_key_value(key, value, types[0], types[1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (scratch / "damaged.gguf").read_bytes(), f"{chosen} {said}"


Damage = Callable[[bytes, Random], Mutated]
