"""adapter_config.json of PEFT: what decides what a LoRA computes is checked, what is not supported is refused by name."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psynth_jax.convert.safetensors_file import read_json
from psynth_jax.errors import AdapterError, shown

# Each makes PEFT compute something else than a LoRA, or put it somewhere else.
_REFUSED = (
    *("use_dora", "lora_bias", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora"),
    *("kasa_config", "velora_config", "monteclora_config", "arrow_config", "target_parameters", "megatron_config"),
    "trainable_token_indices",
)
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights: the base stays as it is
_MOST_RANK, _MOST_ALPHA = 1 << 16, 1e9
_TEXTS = "a text or a list of texts"


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """What decides rank and scale of a module, and which modules lists of names leave out.

    Patterns are regular expressions, tried in their order, with the value that a matching module has.
    """

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: tuple[tuple[re.Pattern[str], int], ...]
    alpha_pattern: tuple[tuple[re.Pattern[str], float], ...]
    targets: tuple[str, ...]
    excluded: tuple[str, ...]
    layers: frozenset[int] | None

    def of_module(self, module: str) -> tuple[int, float]:
        """Return rank and scale of a module, such as "model.layers.0.self_attn.q_proj"."""
        rank = next((value for pattern, value in self.rank_pattern if pattern.match(module)), self.rank)
        alpha = next((value for pattern, value in self.alpha_pattern if pattern.match(module)), self.alpha)
        return rank, self.scale_of(rank, alpha)

    def scale_of(self, rank: int, alpha: float) -> float:
        """Return what the product of the factors is multiplied by."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def leaves_out(self, module: str) -> bool:
        """Whether PEFT would not adapt a module, so that factors of it contradict the config.

        Told from lists only: a regular expression is not run, the file's tensors are believed.
        """
        if _is_named(module, self.excluded):
            return True
        if not self.targets or module in self.targets:
            return False
        layer = int(module.split(".")[2])
        return not _is_named(module, self.targets) or (self.layers is not None and layer not in self.layers)


def _is_named(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_peft_config(file: Path) -> PeftConfig:
    """Read adapter_config.json.

    Raises `CheckpointError` for a file that is absent or no JSON object, `AdapterError` for values that are not supported,
    all of them listed, or of a wrong type.
    """
    described = read_json(file)
    refused = _refused(described)
    if refused:
        raise AdapterError(f"{file} uses what is not supported: " + "; ".join(refused))
    rank: Any = described.get("r")
    alpha: Any = described.get("lora_alpha")
    if not _is_rank(rank) or not _is_alpha(alpha):
        raise AdapterError(
            f"{file} has r {shown(rank)} and lora_alpha {shown(alpha)}; both must be positive numbers, "
            f"r a whole one of at most {_MOST_RANK}"
        )
    pattern = functools.partial(_pattern, file, described)
    return PeftConfig(
        rank,
        float(alpha),
        _flag(file, described, "use_rslora"),
        pattern("rank_pattern", _is_rank, f"a whole number from 1 to {_MOST_RANK}"),
        pattern("alpha_pattern", _is_alpha, "a positive number"),
        _names(file, described, "target_modules"),
        _names(file, described, "exclude_modules"),
        _layers(file, described),
    )


def _refused(described: Mapping[str, Any]) -> list[str]:
    refused = [f"{key} {shown(described[key])}" for key in _REFUSED if described.get(key)]
    new = sorted(key for key in described if key.startswith("use_") and key not in (*_REFUSED, "use_rslora"))
    refused += [f"{shown(key)} {shown(described[key])}" for key in new if described[key]]
    if described.get("peft_type") != "LORA":
        refused.append(f"peft_type {shown(described.get('peft_type'))} (LORA is supported)")
    if described.get("bias", "none") != "none":
        refused.append(f"bias {shown(described['bias'])}")
    start = described.get("init_lora_weights", True)
    if not any(start == harmless for harmless in _HARMLESS_STARTS):
        refused.append(f"init_lora_weights {shown(start)}, which changes the base")
    saved = described.get("modules_to_save") or []
    if not isinstance(saved, list) or {str(name) for name in saved} - {"embed_tokens", "lm_head"}:
        refused.append(f"modules_to_save {shown(saved)}")
    return refused


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST_RANK


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < _MOST_ALPHA


def _flag(file: Path, described: Mapping[str, Any], key: str) -> bool:
    value = described.get(key)
    if value is not None and type(value) is not bool:
        raise AdapterError(f"{file}: {key} must be true or false, not {shown(value)}")
    return bool(value)


def _names(file: Path, described: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the names of a list; empty for a regular expression, or where there is none."""
    value = described.get(key)
    if value is None or isinstance(value, str):
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(f"{file}: {key} must be {_TEXTS}, not {shown(value)}")
    return tuple(value)


def _layers(file: Path, described: Mapping[str, Any]) -> frozenset[int] | None:
    """Return the layers that names of `target_modules` are meant for; None: all, as for an empty list."""
    chosen = described.get("layers_to_transform")
    layers = chosen if isinstance(chosen, list) else [chosen]
    if chosen is not None and not all(type(layer) is int for layer in layers):
        raise AdapterError(f"{file}: layers_to_transform must be a layer or a list of layers, not {shown(chosen)}")
    patterns = described.get("layers_pattern")
    if patterns is not None and not isinstance(patterns, str):
        _names(file, described, "layers_pattern")
    if chosen is None or not layers or patterns:
        return None
    return frozenset(layers)


def _pattern(file: Path, described: Mapping[str, Any], key: str, fits: Any, right: str) -> tuple[tuple[Any, Any], ...]:
    """Return the compiled patterns of `rank_pattern` or `alpha_pattern`, matched as PEFT matches them."""
    given = described.get(key)
    if given is None:
        return ()
    if not isinstance(given, dict):
        raise AdapterError(f"{file}: {key} must be an object, not {shown(given)}")
    compiled = []
    for spelled, value in given.items():
        if not fits(value):
            raise AdapterError(f"{file}: {key} of {shown(spelled)} must be {right}, not {shown(value)}")
        if not _is_quick(spelled):
            raise AdapterError(f"{file}: {key} has the pattern {shown(spelled)}, which is too involved to be tried")
        try:
            compiled.append((re.compile(rf"(.*\.)?({spelled})$"), value))
        except (re.error, RecursionError, OverflowError) as error:
            raise AdapterError(f"{file}: {key} has {shown(spelled)}, which is no regular expression: {error}") from None
    return tuple(compiled)


def _is_quick(pattern: str) -> bool:
    """Whether a foreign regular expression can be tried on a name without the risk that this takes for ever.

    What makes one slow is repetition of groups, and many repetitions or groups one after the other.
    """
    groups = pattern.count("(")
    if len(pattern) > 1000 or groups > (2 if len(pattern) > 200 else 4):
        return False
    if re.search(r"\)[*+{]", pattern):
        return False
    return sum(map(pattern.count, "*+{")) <= 4 and pattern.count("?") <= 8
