"""Branches on disk: only the slots that a branch owns, with a JSON description next to them.

DIR/branches.json          format, fingerprint of the model, per branch: tokens, text, shift, span, segments
DIR/branches.safetensors   q<i>.b<j>.s<k>.k and .v, each [L, K, slots, H], in the cache's own dtype; for int8 caches also
                           .k_scale and .v_scale [L, K, 1, slots]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax

from psynth_jax.axes import Array
from psynth_jax.branches import Branch, Branches, Segment
from psynth_jax.cache import KVCache, in_device_layout, slot_bucket
from psynth_jax.directories import replacing
from psynth_jax.errors import CheckpointError, InputError
from psynth_jax.files import umask_mode
from psynth_jax.ops.cached_heads import CachedHeads

FORMAT = 1
_DESCRIPTION, _TENSORS = "branches.json", "branches.safetensors"


def save(branches: Branches, directory: str | Path) -> None:
    """Write branches to a new or existing directory; an interrupted write leaves what was there before.

    Raises `InputError` when the directory holds something else than branches.
    """
    tensors: dict[str, Array] = {}
    questions = []
    every = [segment for group in branches.questions for branch in group for segment in branch.segments]
    quantised = all(segment.cache.heads.quantised for segment in every)
    for number, group in enumerate(branches.questions):
        described = []
        for index, branch in enumerate(group):
            lengths = []
            for part, segment in enumerate(branch.segments):
                for half, values in _slots_of(segment, quantised).items():
                    tensors[f"q{number}.b{index}.s{part}.{half}"] = values
                lengths.append(segment.length)
            described.append(
                {
                    "token_ids": list(branch.token_ids),
                    "text": branch.text,
                    "shift": branch.shift,
                    "span": branch.span,
                    "finish_reason": branch.finish_reason,
                    "segments": lengths,
                }
            )
        questions.append(described)
    description = {
        "format": FORMAT,
        "fingerprint": branches.fingerprint,
        "batched": branches.batched,
        "questions": questions,
    }
    with replacing(Path(directory), (_DESCRIPTION, _TENSORS), "a directory of branches") as fresh:
        with umask_mode(fresh / _TENSORS):
            safetensors.flax.save_file(tensors, str(fresh / _TENSORS))
        (fresh / _DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False, indent=1), encoding="utf-8")


def load(directory: str | Path) -> Branches:
    """Read branches back; every saved segment becomes a row of one new cache.

    Raises:
      InputError: no such directory.
      CheckpointError: a file is missing, truncated or of another format.
    """
    source = Path(directory)
    if not source.is_dir():
        raise InputError(f"no such directory: {source}")
    try:
        description = json.loads((source / _DESCRIPTION).read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise CheckpointError(f"{source}: branches format {description['format']}, this version reads format {FORMAT}")
        tensors = safetensors.flax.load_file(str(source / _TENSORS))
        segments = _pack(tensors)
        questions = [
            [_branch(entry, segments, f"q{number}.b{index}") for index, entry in enumerate(group)]
            for number, group in enumerate(description["questions"])
        ]
        described = sum(len(entry["segments"]) for group in description["questions"] for entry in group)
        per_segment = 4 if any(name.endswith("_scale") for name in tensors) else 2
        if len(segments) * per_segment != len(tensors) or len(segments) != described:
            raise ValueError("tensors and description do not name the same segments")
        return Branches(questions, description["fingerprint"], batched=description["batched"])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{source} does not hold readable branches: {error}") from None


def _slots_of(segment: Segment, quantised: bool) -> dict[str, Array]:
    """Return the slots of a segment by the names of their tensors; int8 only if all segments are."""
    if quantised:
        return segment.cache.heads.slots_of(segment.row, segment.first, segment.length)
    k, v = segment.cache.slots_of(segment.row, segment.first, segment.length)
    return {"k": k, "v": v}


def _pack(tensors: dict[str, Array]) -> dict[str, Segment]:
    """Lay all segments into the rows of one cache, so that a synthesizer reads one part; return name -> segment."""
    names = [name.removesuffix(".k") for name in tensors if name.endswith(".k")]
    if not names:  # every branch is empty: there is nothing to cache
        return {}
    shapes = {tensors[f"{name}.k"].shape[:2] + tensors[f"{name}.k"].shape[3:] for name in names}
    if any(tensors[f"{name}.k"].shape != tensors[f"{name}.v"].shape for name in names) or len(shapes) != 1:
        raise ValueError("keys and values of the segments do not have matching shapes")
    slots = slot_bucket(max(tensors[f"{name}.k"].shape[2] for name in names))

    def rows(half: str) -> Array:
        heads, axis = [np.asarray(tensors[f"{name}.{half}"]) for name in names], 3 if half.endswith("_scale") else 2
        widths = [[(0, slots - h.shape[i]) if i == axis else (0, 0) for i in range(4)] for h in heads]
        return jnp.asarray(np.stack([np.pad(h, width) for h, width in zip(heads, widths, strict=True)], axis=1))

    lengths = [tensors[f"{name}.k"].shape[2] for name in names]
    halves = ["k", "v"] + (["k_scale", "v_scale"] if f"{names[0]}.k_scale" in tensors else [])
    arrays: dict[str, Any] = {half: rows(half) for half in halves}
    cache = KVCache(in_device_layout(CachedHeads(**arrays)), jnp.asarray(lengths, jnp.int32))
    return {name: Segment(cache, row, 0, length) for row, (name, length) in enumerate(zip(names, lengths, strict=True))}


def _branch(entry: dict[str, Any], segments: dict[str, Segment], name: str) -> Branch:
    mine = tuple(segments[f"{name}.s{part}"] for part in range(len(entry["segments"])))
    if [segment.length for segment in mine] != entry["segments"]:
        raise ValueError(f"{name} is described with other lengths than its tensors have")
    if sum(entry["segments"]) != len(entry["token_ids"]):
        raise ValueError(f"{name} has {sum(entry['segments'])} cached slots and {len(entry['token_ids'])} token ids")
    return Branch(
        tuple(int(token) for token in entry["token_ids"]),
        str(entry["text"]),
        int(entry["shift"]),
        int(entry["span"]),
        mine,
        entry["finish_reason"],
    )
