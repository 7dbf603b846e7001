"""LoRA adapters of the PEFT library: adapter_config.json and adapter_model.safetensors, read and written without PEFT.

What such an adapter stores next to its factors is looked at, too: PEFT saves the embedding and the head along when the
vocabulary was resized.  They are the base's own rows, then, and say how much of the vocabulary the adapter was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.base import Base
from psynth_jax.convert.rules import Form, axis_sizes
from psynth_jax.convert.safetensors_file import SafetensorsFile, read_json, write_json
from psynth_jax.errors import AdapterError, CheckpointError, ModelMismatchError
from psynth_jax.nn.adapter import ATTENTION_TARGETS, Lora, targets_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
_PREFIX = "base_model.model."
_FACTOR = _PREFIX + "model.layers.{l}.{module}_proj.lora_{half}.weight"
_TABLES = {_PREFIX + "model.embed_tokens.weight": "embedding", _PREFIX + "lm_head.weight": "head"}
_REFUSED = (
    *("use_dora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern", "layer_replication", "exclude_modules"),
    *(
        "alora_invocation_tokens",
        "loftq_config",
        "use_qalora",
        "use_bdlora",
        "kasa_config",
        "velora_config",
        "monteclora_config",
    ),
    *("target_parameters", "megatron_config"),
)
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


def read_peft(directory: Path, base: Base) -> tuple[Lora, int]:
    """Read an adapter of `base`; return it with the number of tokens that it was trained to choose from.

    Raises:
      CheckpointError: a file is absent or damaged.
      AdapterError: another kind of adapter, or tensors that do not fit the model, all of them listed.
      ModelMismatchError: it stores an embedding or a head that is not the base's.
    """
    described = read_json(directory / CONFIG)
    file = SafetensorsFile(directory / WEIGHTS)
    if file.problems:
        raise AdapterError(f"{file.path}: " + "; ".join(file.problems[:8]))
    targets, scale = _targets(directory, described, file.shapes, base.config), _scale(directory, described)
    tables = {name: table for name, table in _TABLES.items() if name in file.shapes}
    layers = _adapted_layers(directory, described, base.config)
    names = _factor_names(targets, layers)
    _refuse_misfits(directory, file.shapes, names, tables, base.config, int(described["r"]))
    vocabulary = _vocabulary(directory, file, tables, base)
    factors: dict[str, dict[str, Any]] = {"down": {}, "up": {}}
    sizes = axis_sizes(base.config) | {"A": int(described["r"])}
    for target in targets:
        for (half, letter), form in zip(_HALVES, _FORMS[target], strict=True):
            stack: HostArray | None = None
            for layer in layers:
                piece = form.to_ours(file.read(_factor_name(target, layer, letter)), sizes)
                stack = np.zeros((base.config.layers, *piece.shape), piece.dtype) if stack is None else stack
                stack[layer] = piece
            factors[half][target] = jnp.asarray(stack)
    return Lora(factors["down"], factors["up"], jnp.float32(scale)), vocabulary


def _targets(directory: Path, described: Mapping[str, Any], names: Iterable[str], config: DecoderConfig) -> list[str]:
    """Return the projections that it changes, by the names of its tensors, after refusing what would be read wrongly."""
    refused = [f"{key} {described[key]!r}" for key in _REFUSED if described.get(key)]
    if described.get("peft_type") != "LORA":
        refused.append(f"peft_type {described.get('peft_type')!r} (LORA is supported)")
    if described.get("bias", "none") != "none":
        refused.append(f"bias {described['bias']!r}")
    if described.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal", "eva"):
        refused.append(f"init_lora_weights {described['init_lora_weights']!r}, which changes the base")
    saved = described.get("modules_to_save") or []
    if not isinstance(saved, list) or {str(name) for name in saved} - {"embed_tokens", "lm_head"}:
        refused.append(f"modules_to_save {saved}")
    changed = {found[1] for name in names if (found := re.search(r"\.(\w+)\.lora_[AB]\.weight$", name))}
    supported = {f"{target}_proj": target for target in targets_of(config)}
    beyond = sorted(changed - {*supported})
    if beyond or not changed:
        refused.append(f"target_modules {', '.join(beyond) or 'none'} ({', '.join(supported)} are supported)")
    if refused:
        raise AdapterError(f"{directory / CONFIG} uses what is not supported: " + "; ".join(refused))
    return [target for name, target in supported.items() if name in changed]


def _scale(directory: Path, described: Mapping[str, Any]) -> float:
    rank, alpha = described.get("r"), described.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not 0 < alpha < 1e9:
        raise AdapterError(f"{directory / CONFIG} has r {rank!r} and lora_alpha {alpha!r}; both must be positive numbers")
    return float(alpha) / (rank**0.5 if described.get("use_rslora") else rank)


def _adapted_layers(directory: Path, described: Mapping[str, Any], config: DecoderConfig) -> list[int]:
    chosen = described.get("layers_to_transform")
    if chosen is None:
        return list(range(config.layers))
    layers = chosen if isinstance(chosen, list) else [chosen]
    if not layers or not all(type(x) is int and 0 <= x < config.layers for x in layers):
        raise AdapterError(
            f"{directory / CONFIG}: layers_to_transform is {chosen}, the model has layers 0 to {config.layers - 1}"
        )
    return sorted(set(layers))


def _factor_name(target: str, layer: int, half: str) -> str:
    module = f"self_attn.{target}" if target in ATTENTION_TARGETS else f"mlp.{target}"
    return _FACTOR.format(l=layer, module=module, half=half)


def _factor_names(targets: Iterable[str], layers: Iterable[int]) -> dict[str, Form]:
    layers = list(layers)
    return {
        _factor_name(target, layer, letter): form
        for target in targets
        for (_, letter), form in zip(_HALVES, _FORMS[target], strict=True)
        for layer in layers
    }


def _refuse_misfits(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, Form],
    tables: Mapping[str, str],
    config: DecoderConfig,
    rank: int,
) -> None:
    sizes = axis_sizes(config) | {"A": rank}
    wrong = [f"missing {name}" for name in names if name not in shapes]
    wrong += [f"extra {name} {list(shape)}" for name, shape in shapes.items() if name not in names and name not in tables]
    for name, form in names.items():
        if name in shapes and shapes[name] != form.their_shape(sizes):
            wrong.append(f"{name} has shape {list(shapes[name])}, expected {list(form.their_shape(sizes))}")
    for name in tables:
        if len(shapes[name]) != 2 or shapes[name][1] != config.width or not 1 <= shapes[name][0] <= config.vocab_size:
            wrong.append(f"{name} has shape {list(shapes[name])}, the base [{config.vocab_size}, {config.width}]")
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise AdapterError(f"{directory / WEIGHTS} does not fit the model: {shown}")


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
            stored = file.read(name, (slice(first, stop), slice(None))).astype(rows.dtype)
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
                name = _factor_name(target, layer, letter)
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
    safetensors.numpy.save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / CONFIG, described)


def _whole(value: float) -> int | float:
    """Undo the rounding of alpha / rank to float32, which is how a `Lora` holds it."""
    return round(value) if abs(value - round(value)) < 1e-5 * value else value


def named_base(directory: Path) -> str | None:
    """Return the base model that adapter_config.json names, if it names one."""
    try:
        name = read_json(directory / CONFIG).get("base_model_name_or_path")
    except CheckpointError:
        return None
    return name if isinstance(name, str) and name else None
