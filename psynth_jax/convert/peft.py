"""LoRA adapters of the PEFT library: adapter_config.json and adapter_model.safetensors, read and written without PEFT.

Which projections of which layers are adapted is what the file has factors for; a layer without them gets
zeros, which add nothing.  Ranks and scales may differ between projections: factors are padded with zeros to
the largest rank, and where scales differ, what one has more or less than the adapter goes into its factor B.

What such an adapter stores next to its factors is looked at, too: PEFT saves the embedding and the head along when the
vocabulary was resized.  They are the base's own rows, then, and say how much of the vocabulary the adapter was trained with.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.convert.adapter_numbers import refuse_not_finite
from psynth_jax.convert.base import Base
from psynth_jax.convert.peft_config import PeftConfig, read_peft_config
from psynth_jax.convert.rules import (
    FLOAT32,
    Form,
    axis_sizes,
    widest,
)
from psynth_jax.convert.safetensors_file import SafetensorsFile, read_json, write_json, write_safetensors
from psynth_jax.errors import AdapterError, ModelMismatchError, listing, shown
from psynth_jax.nn.adapter import ATTENTION_TARGETS, Lora, targets_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = _PREFIX + "{module}.lora_{half}.weight"
_TABLES = {_PREFIX + "model.embed_tokens.weight": "embedding", _PREFIX + "lm_head.weight": "head"}
_ROWS = 4096  # of a table, compared at once

# Target -> forms of the factors A (down) and B (up); the letter A is the rank.
_FORMS: Mapping[str, tuple[Form, Form]] = {
    "q": (Form("A D", "D A"), Form("(N H) A", "A N H")),
    "k": (Form("A D", "D A"), Form("(K H) A", "A K H")),
    "v": (Form("A D", "D A"), Form("(K H) A", "A K H")),
    "o": (Form("A (N H)", "N H A"), Form("D A", "A D")),
    "gate": (Form("A D", "D A"), Form("F A", "A F")),
    "up": (Form("A D", "D A"), Form("F A", "A F")),
    "down": (Form("A F", "F A"), Form("D A", "A D")),
}
_HALVES = ("down", "A"), ("up", "B")


@dataclasses.dataclass(frozen=True)
class _Adapted:
    """One projection of one layer that has factors: what PEFT calls it, and the rank and scale that it has there."""

    target: str
    layer: int
    rank: int
    scale: float

    @property
    def module(self) -> str:
        return _module(self.target, self.layer)

    def factor(self, half: str) -> str:
        """Return the name of its factor A or B."""
        return _FACTOR.format(module=self.module, half=half)


def read_peft(directory: Path, base: Base) -> tuple[Lora, int]:
    """Read an adapter of `base`; return it with the number of tokens that it was trained to choose from.

    Raises:
      CheckpointError: a file is absent or damaged.
      AdapterError: another kind of adapter, tensors that do not fit the model, all of them listed, or numbers that are not
        finite.
      ModelMismatchError: it stores an embedding or a head that is not the base's.
    """
    described = read_peft_config(directory / CONFIG)
    file = SafetensorsFile(directory / WEIGHTS)
    if file.problems:
        raise AdapterError(f"{file.path}: " + listing(file.problems))
    _refuse_targets(directory, file.shapes, base)
    tables = {name: table for name, table in _TABLES.items() if name in file.shapes}
    adapted = _adapted(file.shapes, described, base)
    _refuse_misfits(directory, file.shapes, adapted, tables, described, base)
    vocabulary = _vocabulary(directory, file, tables, base)
    scales = {one.scale for one in adapted}
    scale = scales.pop() if len(scales) == 1 else described.scale_of(described.rank, described.alpha)
    rank = max(one.rank for one in adapted)
    down: dict[str, Any] = {}
    up: dict[str, Any] = {}
    for target in _FORMS:
        ours = [one for one in adapted if one.target == target]
        if ours:
            down[target] = jnp.asarray(_stacked(file, ours, "A", rank, scale, base))
            up[target] = jnp.asarray(_stacked(file, ours, "B", rank, scale, base))
    return Lora(down, up, jnp.float32(scale)), vocabulary


def _stacked(file: SafetensorsFile, adapted: list[_Adapted], half: str, rank: int, scale: float, base: Base) -> HostArray:
    """Return one factor of all layers, padded with zeros to a rank and to all layers."""
    form = _FORMS[adapted[0].target]["AB".index(half)]
    sizes = axis_sizes(base.config)
    dtypes = [file.dtypes[one.factor(half)] for one in adapted]
    if half == "B" and any(one.scale != scale for one in adapted):
        dtypes.append(FLOAT32)
    stack = np.zeros((base.config.layers, *form.our_shape(sizes | {"A": rank})), widest(dtypes))
    for one in adapted:
        name = one.factor(half)
        piece = form.to_ours(file.read(name), sizes | {"A": one.rank})
        if half == "B" and one.scale != scale:
            with np.errstate(over="ignore"):  # looked at just below, with the tensor's name
                piece = piece.astype(np.float32) * np.float32(one.scale / scale)
        refuse_not_finite(file.path, name, piece)
        own = slice(one.rank)
        # A has the rank as its last axis, B as its first
        stack[one.layer][(..., own) if half == "A" else own] = piece
    return stack


def _module(target: str, layer: int) -> str:
    return f"model.layers.{layer}.{'self_attn' if target in ATTENTION_TARGETS else 'mlp'}.{target}_proj"


def _refuse_targets(directory: Path, names: Iterable[str], base: Base) -> None:
    """Refuse factors of modules that no adapter may change."""
    changed = {found[1] for name in names if (found := re.search(r"\.(\w+)\.lora_[AB]\.weight$", name))}
    supported = [f"{target}_proj" for target in targets_of(base.config)]
    beyond = sorted(changed - {*supported})
    if beyond or not changed:
        raise AdapterError(
            f"{directory / WEIGHTS} uses what is not supported: target_modules {listing(beyond, ', ') or 'none'} "
            f"({', '.join(supported)} are supported)"
        )


def _adapted(names: Mapping[str, Any], described: PeftConfig, base: Base) -> list[_Adapted]:
    """List what has a factor A or B in the file."""
    found = []
    for target in targets_of(base.config):
        for layer in range(base.config.layers):
            module = _module(target, layer)
            if any(_FACTOR.format(module=module, half=half) in names for _, half in _HALVES):
                rank, scale = described.of_module(module)
                found.append(_Adapted(target, layer, rank, scale))
    return found


def _refuse_misfits(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    adapted: list[_Adapted],
    tables: Mapping[str, str],
    described: PeftConfig,
    base: Base,
) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for one in adapted:
        for (_, half), form in zip(_HALVES, _FORMS[one.target], strict=True):
            expected[one.factor(half)] = form.their_shape(axis_sizes(base.config) | {"A": one.rank})
    wrong = [f"missing {name}" for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected and name not in tables]
    wrong += [f"extra {name} {list(shapes[name])}" for name in extra]
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            wrong.append(f"{name} has shape {list(shapes[name])}, expected {list(shape)}")
    for name in tables:
        if (
            len(shapes[name]) != 2
            or shapes[name][1] != base.config.width
            or not 1 <= shapes[name][0] <= base.config.vocab_size
        ):
            wrong.append(f"{name} has shape {list(shapes[name])}, the base [{base.config.vocab_size}, {base.config.width}]")
    wrong += [
        f"{one.module} has factors, though {CONFIG} leaves it out" for one in adapted if described.leaves_out(one.module)
    ]
    if wrong or not adapted:
        raise AdapterError(f"{directory / WEIGHTS} does not fit the model: {listing(wrong) or 'it has no factors'}")


def _vocabulary(directory: Path, file: SafetensorsFile, tables: Mapping[str, str], base: Base) -> int:
    """Return how many rows the stored tables have, after checking that they are the base's rows."""
    counts = {file.shapes[name][0] for name in tables}
    if len(counts) > 1:
        raise AdapterError(f"{directory / WEIGHTS} stores an embedding and a head of different lengths: {sorted(counts)}")
    for name, table in tables.items():
        count = file.shapes[name][0]
        table = "embedding" if base.config.tied_head else table
        for first in range(0, count, _ROWS):
            stop = min(first + _ROWS, count)
            rows = base.rows(table, first, stop)
            stored = file.read(name, (slice(first, stop), slice(None)))
            refuse_not_finite(file.path, name, stored)
            with np.errstate(over="ignore"):  # a value that the base's dtype cannot hold differs from the base's
                stored = stored.astype(rows.dtype)
            if not np.array_equal(stored, rows):
                apart = np.abs(stored.astype(np.float32) - rows.astype(np.float32)).max(axis=1)
                row = first + int(np.argmax(apart > 0))
                raise ModelMismatchError(
                    f"{directory / WEIGHTS} stores another {table} than {base.name} has: row {row} differs "
                    f"by up to {apart[row - first]:.3g}; a synthesizer shares these with its workers"
                )
    return counts.pop() if counts else base.config.vocab_size


def write_peft(directory: Path, lora: Lora, base: Base, vocabulary: int, base_name: str) -> None:
    """Write an adapter that `peft.PeftModel.from_pretrained` loads.

    Where it was trained with a part of the vocabulary, that part of embedding and head is stored along, as PEFT does it, so
    that a loader can cut the base alike.
    """
    sizes = axis_sizes(base.config) | {"A": lora.rank}
    tensors: dict[str, HostArray] = {}
    for target in lora.down:
        for (half, letter), form in zip(_HALVES, _FORMS[target], strict=True):
            stack = np.asarray(getattr(lora, half)[target])
            for layer in range(base.config.layers):
                name = _FACTOR.format(module=_module(target, layer), half=letter)
                tensors[name] = np.ascontiguousarray(form.to_theirs(stack[layer], sizes))
    if vocabulary < base.config.vocab_size:
        for name, table in _TABLES.items():
            tensors[name] = np.array(base.rows("embedding" if base.config.tied_head else table, 0, vocabulary))
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": _whole(float(lora.scale) * lora.rank),
        "lora_dropout": 0.0,
        "target_modules": [f"{target}_proj" for target in sorted(lora.down)],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / WEIGHTS, tensors, {"format": "pt"})
    write_json(directory / CONFIG, described)


def _whole(value: float) -> int | float:
    """Undo the rounding of alpha / rank to float32, which is how a `Lora` holds it."""
    return round(value) if abs(value - round(value)) < 1e-5 * value else value


def named_base(directory: Path) -> str | None:
    """Return the base model that adapter_config.json names; None: there is no such file, or it names none.

    Raises `CheckpointError` for a file that cannot be read, `AdapterError` for a name that is no text.
    """
    file = directory / CONFIG
    if not (file.exists() or file.is_symlink()):
        return None
    name = read_json(file).get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        raise AdapterError(f"{file}: base_model_name_or_path must be a text, not {shown(name)}")
    return name or None
