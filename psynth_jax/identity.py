"""Which model a file was made for: a digest of the stored weights and of what the config computes.

The digest covers evenly spaced elements of every parameter as they are stored, so it does not depend on the dtype that a
model is loaded in.  They are rounded to bfloat16: a model that is converted to bfloat16 stays the same one, a model of 4
bits is another.  Fields of the config that change no number are left out.

Versions up to 0.1.0 took the numbers of the loaded model and the whole config.  Files with such a digest stay valid: an
`Identity` accepts them too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig

_SAMPLES = 2048  # elements of each parameter that the digest covers
_VERSION = "v2-"  # digests of versions up to 0.1.0 have no such prefix
_SEPARATOR = "+"  # between digests of different versions, of branches that were joined
_CHANGES_NO_NUMBER = ("family", "max_positions", "tied_head")  # whether there is a head is seen from the parameters


class Samples:
    """The sampled elements of one parameter.  They are noted as the parameter is read, piece by piece, in any order."""

    def __init__(self, shape: Sequence[int]):
        """Sample a parameter of this shape; nothing is known of it yet."""
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        # Sorted, so that the places inside a piece are found by bisection.
        self._places = np.linspace(0, size - 1, min(_SAMPLES, size)).astype(np.int64)
        self.values = np.zeros(len(self._places), np.float32)
        self.known = np.zeros(len(self._places), bool)

    def note(self, first: Sequence[int], piece: HostArray) -> None:
        """Keep the sampled elements of `piece`, which is a piece of the parameter that begins at the index `first`."""
        if not piece.size:
            return
        last = [start + size - 1 for start, size in zip(first, piece.shape, strict=True)]
        begin = np.searchsorted(self._places, np.ravel_multi_index(tuple(first), self.shape))
        end = np.searchsorted(self._places, np.ravel_multi_index(tuple(last), self.shape), side="right")
        local = []
        inside = np.ones(end - begin, bool)
        for place, start, size in zip(self._unravelled(slice(begin, end)), first, piece.shape, strict=True):
            local.append(place - start)
            inside &= (place >= start) & (place < start + size)
        chosen = np.flatnonzero(inside)
        self.values[begin + chosen] = piece[tuple(place[chosen] for place in local)].astype(np.float32)
        self.known[begin + chosen] = True

    def places(self, which: HostArray | slice = slice(None)) -> tuple[HostArray, ...]:
        """Return the places of the sampled elements, an index array for each axis; `which` selects some of them."""
        return self._unravelled(which)

    def set(self, which: HostArray, values: HostArray) -> None:
        """Note the elements `which`, counted in the order of `places`."""
        self.values[which] = values.astype(np.float32)
        self.known[which] = True

    def _unravelled(self, which: HostArray | slice) -> tuple[HostArray, ...]:
        return np.unravel_index(self._places[which], self.shape)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells a model from all others.

    fingerprint: the digest that files note.  earlier: digests of the same model in files of versions up to 0.1.0, for each
    dtype that it could be loaded in.  stored: what its numbers are stored as, such as "bfloat16".
    """

    fingerprint: str
    earlier: frozenset[str]
    stored: str

    def matches(self, noted: object) -> bool:
        """Whether a digest that a file notes is this model's."""
        if not isinstance(noted, str) or not noted:
            return False
        return all(part == self.fingerprint or part in self.earlier for part in noted.split(_SEPARATOR))

    def told_from(self, noted: object, made_for: object, name: str) -> str:
        """Say for a message which weights a file was made for, and which ones this model, called `name`, has.

        noted, made_for: the digest and the name that the file notes.
        """
        mine = f"{short(self.fingerprint)}, stored as {self.stored}"
        if made_for == name:
            return f"{name} with other weights ({short(noted)}) than those here ({mine})"
        return f"{made_for}, not for {name}: for the weights {short(noted)}, these are {mine}"


def short(fingerprint: object) -> str:
    """Return the first letters of a digest, which tell two of them apart in a message."""
    text = str(fingerprint).split(_SEPARATOR, maxsplit=1)[0]
    return text.removeprefix(_VERSION)[:8]


def identify(config: DecoderConfig, samples: Mapping[str, HostArray], stored: str) -> Identity:
    """Return the identity of a model from the sampled elements of all its parameters, float32."""
    exact = {name: np.asarray(sampled, np.float32) for name, sampled in samples.items()}
    values = {name: sampled.astype(ml_dtypes.bfloat16) for name, sampled in exact.items()}
    # What a model was called that was loaded in float32 or bfloat16, and in float16, which rounded its numbers twice.
    earlier = {_digest(config.spelled, values), _digest(config.spelled, _through_float16(exact))}
    if "head" in exact and np.array_equal(exact["head"], exact["embedding"]):
        del values["head"]  # a copy of the embedding is a tied head
    return Identity(_VERSION + _digest(_computed(config), values), frozenset(earlier), stored)


def joined(fingerprints: Sequence[str]) -> str | None:
    """Return the digest of what was made by one model; None if it was made by different ones.

    Digests of different versions cannot be compared with each other: both stay, and the model that reads them checks them.
    """
    parts = sorted({part for fingerprint in fingerprints for part in fingerprint.split(_SEPARATOR)})
    new = [part for part in parts if part.startswith(_VERSION)]
    old = [part for part in parts if not part.startswith(_VERSION)]
    if len(new) > 1 or len(old) > 1:
        return None
    return _SEPARATOR.join(new + old)


def _through_float16(values: Mapping[str, HostArray]) -> dict[str, HostArray]:
    with np.errstate(over="ignore"):  # such a model was never loaded
        return {name: sampled.astype(np.float16).astype(ml_dtypes.bfloat16) for name, sampled in values.items()}


def _digest(spelled: str, values: Mapping[str, HostArray]) -> str:
    summed = hashlib.sha256(spelled.encode())
    for name, sampled in sorted(values.items()):
        summed.update(name.encode())
        summed.update(sampled.tobytes())
    return summed.hexdigest()


def _computed(config: DecoderConfig) -> str:
    """Spell what decides the numbers that a config computes, alike in later versions that have more fields."""
    values: dict[str, Any] = config.model_dump(mode="json")
    for field in _CHANGES_NO_NUMBER:
        del values[field]
    if not config.experts:
        del values["norm_expert_weights"], values["experts_per_token"]
    if config.query_scale == config.head_width**-0.5:
        values["query_scale"] = None
    if values["rope"]["kind"] == "linear" and values["rope"]["factor"] == 1:
        values["rope"] = {"kind": "plain", "theta": values["rope"]["theta"]}
    fields = type(config).model_fields
    told = {name: value for name, value in values.items() if value != fields[name].default}
    return json.dumps(told, sort_keys=True)
