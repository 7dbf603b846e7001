"""An adapter on disk: the synthesizer's LoRA and cache mapper, with what is needed to refuse the wrong model.

DIR/psynth_adapter.json       format version, fingerprint of the base model, rank, alpha, targets, mapper, sink, template
                              variables, training summary
DIR/adapter.safetensors       lora.<target>.down, lora.<target>.up (letters of `nn.adapter.FACTOR_LETTERS`)
DIR/mapper.safetensors        hidden_kernel, hidden_bias, out_kernel, out_bias
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import HostArray, letters_to_shape
from psynth_jax.convert.adapter_numbers import refuse_not_finite, rounded
from psynth_jax.convert.base import Base
from psynth_jax.convert.rules import parameter_dtype
from psynth_jax.convert.safetensors_file import SafetensorsFile, read_json, write_safetensors
from psynth_jax.directories import replacing
from psynth_jax.errors import AdapterError, CheckpointError, ModelMismatchError, listing, shown
from psynth_jax.mapper import FEATURES, Mapper
from psynth_jax.nn.adapter import FACTOR_LETTERS, Lora, targets_of
from psynth_jax.storage.paths import AnyPath, as_path
from psynth_jax.template_variables import TemplateVariables, checked_variables

FORMAT = 1
DESCRIPTION, _LORA, _MAPPER = "psynth_adapter.json", "adapter.safetensors", "mapper.safetensors"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What makes a synthesizer of a base model.

    lora None: the base weights; mapper None: the identity.  vocabulary: it writes only the first so many tokens; None: all.
    sink: tokens that it reads once, as a branch before all others, which are encoded after them; empty: it has none.
    template: variables of the chat template that it was trained with; None: that is not known.
    """

    lora: Lora | None
    mapper: Mapper | None
    vocabulary: int | None = None
    sink: tuple[int, ...] = ()
    template: TemplateVariables | None = None

    @property
    def digest(self) -> str:
        """A hash of all that decides what is computed: the same wherever the adapter lies."""
        summed = hashlib.sha256(repr((self.vocabulary, self.sink)).encode())
        if self.template:
            summed.update(json.dumps(self.template, sort_keys=True).encode())
        for path, leaf in jax.tree.leaves_with_path((self.lora, self.mapper)):
            values = np.asarray(leaf)
            summed.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
            summed.update(values.tobytes())
        return summed.hexdigest()


def save_adapter(
    directory: str | AnyPath,
    adapter: Adapter,
    model: Base,
    training: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """Write an adapter of `model` to a directory, whole or not at all; an adapter that is there already is replaced.

    Args:
      training: a summary (JSON values) to keep with it.
      dtype: of the LoRA's factors: "float32", "bfloat16" or "float16"; None is as they are.

    Raises:
      InputError: the directory exists and holds something else.
      ConfigError: unknown dtype.
      AdapterError: the adapter has numbers that are not finite, or that dtype cannot hold, or a scale below zero.
    """
    lora, mapper, numbers = adapter.lora, adapter.mapper, parameter_dtype(dtype)
    place = as_path(directory)
    factors = {} if lora is None else _rounded_factors(place, lora, numbers)
    arrays = {} if mapper is None else _arrays(place, mapper)
    description = {
        "format": FORMAT,
        "base_fingerprint": model.fingerprint,
        "base_name": model.name,
        "vocab_size": adapter.vocabulary or model.config.vocab_size,
        "rank": lora.rank if lora is not None else 0,
        "alpha": float(lora.scale) * lora.rank if lora is not None else 0.0,
        "targets": sorted(lora.down) if lora is not None else [],
        "mapper_hidden": int(mapper.hidden_bias.shape[0]) if mapper is not None else 0,
        "mapper_features": list(FEATURES),
        "sink": list(adapter.sink),
        "template": None if adapter.template is None else dict(adapter.template),
        "training": dict(training or {}),
    }
    with replacing(place, (DESCRIPTION, _LORA, _MAPPER), "an adapter directory") as fresh:
        if lora is not None:
            write_safetensors(fresh / _LORA, factors)
        if mapper is not None:
            write_safetensors(fresh / _MAPPER, arrays)
        (fresh / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def _rounded_factors(directory: AnyPath, lora: Lora, dtype: np.dtype | None) -> dict[str, HostArray]:
    if not (math.isfinite(float(lora.scale)) and float(lora.scale) >= 0):
        raise AdapterError(
            f"{directory}: the scale of a LoRA must be a finite number that is not negative, not {lora.scale}"
        )
    factors = {}
    for half, values in (("down", lora.down), ("up", lora.up)):
        for target, value in values.items():
            name = f"lora.{target}.{half}"
            refuse_not_finite(directory, name, np.asarray(value))
            factors[name] = rounded(directory, name, np.asarray(value), dtype)
    return factors


def _arrays(directory: AnyPath, mapper: Mapper) -> dict[str, HostArray]:
    arrays = {field.name: np.asarray(getattr(mapper, field.name)) for field in dataclasses.fields(mapper)}
    for name, values in arrays.items():
        refuse_not_finite(directory, f"{name} of the mapper", values)
    return arrays


def is_adapter(directory: Path) -> bool:
    """Whether a directory is one of ours."""
    return (directory / DESCRIPTION).is_file()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len({*value}) == len(value)


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e30


# Key of psynth_adapter.json -> whether a value is of its kind, and what it must be.
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "base_fingerprint": (_is_text, "a text"),
    "base_name": (_is_text, "a text"),
    "vocab_size": (_is_count, "a count of tokens"),
    "rank": (_is_count, "a whole number that is not negative"),
    "alpha": (_is_scale, "a finite number that is not negative"),
    "targets": (_is_list_of_texts, "a list of names, each once"),
    "mapper_hidden": (_is_count, "a whole number that is not negative"),
    "mapper_features": (_is_list_of_texts, "a list of names, each once"),
}


def describe(directory: Path) -> dict[str, Any]:
    """Return what an adapter says of itself: psynth_adapter.json, its values checked.

    Raises `AdapterError` for a file that cannot be read, another format version, or values of a wrong kind.
    """
    file = directory / DESCRIPTION
    try:
        description = read_json(file, finite=False)  # a summary may tell of a loss that was no number
    except CheckpointError as error:
        raise AdapterError(f"{directory} is not a readable adapter: {error}") from None
    version = description.get("format")
    if version is None:
        raise AdapterError(f"{directory} is not a readable adapter: {file.name} has no format")
    if type(version) is not int or version != FORMAT:
        raise AdapterError(f"{directory}: adapter format {shown(version)}, this version reads format {FORMAT}")
    wrong = []
    for key, (fits, right) in _KINDS.items():
        if key not in description:
            wrong.append(f"{key} is missing")
        elif not fits(description[key]):
            wrong.append(f"{key} must be {right}, not {shown(description[key])}")
    training = description.get("training")
    if training is not None and not isinstance(training, dict):
        wrong.append(f"training must be an object, not {shown(training)}")
    if not wrong and description["targets"] and description["rank"] < 1:
        wrong.append(f"rank must be at least 1, not {description['rank']}")
    if wrong:
        raise AdapterError(f"{directory} is not a readable adapter: {file.name}: " + "; ".join(wrong))
    return description


def read_adapter(source: Path, model: Base) -> Adapter:
    """Read an adapter for `model`.

    Raises:
      AdapterError: it is not an adapter, of another format version, damaged, its tensors do not fit the model, or have
        numbers that are not finite.
      ModelMismatchError: it was made for another base model.
    """
    description = describe(source)
    noted = description["base_fingerprint"]
    if not model.identity.matches(noted):
        told = model.identity.told_from(noted, description["base_name"], model.name)
        raise ModelMismatchError(f"{source} was made for the base model {told}")
    lora = _lora(source / _LORA, description, model) if description["targets"] else None
    mapper = _mapper(source / _MAPPER, description) if description["mapper_hidden"] else None
    vocabulary = description["vocab_size"]
    sink = checked_sink(description.get("sink", []), model, source / DESCRIPTION)
    variables = description.get("template", {})  # files without it are of adapters that were trained with no variables
    template = None
    if variables is not None:
        template = checked_variables(variables, f"template of {source / DESCRIPTION}", AdapterError)
    if not 1 <= vocabulary <= model.config.vocab_size:
        raise AdapterError(f"{source} chooses from {vocabulary} tokens, {model.name} has {model.config.vocab_size}")
    return Adapter(lora, mapper, None if vocabulary == model.config.vocab_size else vocabulary, sink, template)


def checked_sink(noted: Any, model: Base, file: Path) -> tuple[int, ...]:
    """Return the tokens of a sink that a file notes.  Raises `AdapterError` for what are no tokens of the model."""
    if not isinstance(noted, list) or not all(type(x) is int and 0 <= x < model.config.vocab_size for x in noted):
        raise AdapterError(f"{file}: sink must be a list of token ids of {model.name}, not {shown(noted)}")
    return tuple(noted)


def _open(file: Path) -> SafetensorsFile:
    try:
        opened = SafetensorsFile(file)
    except CheckpointError as error:
        raise AdapterError(f"{file.parent} is not a readable adapter: {error}") from None
    if opened.problems:
        raise AdapterError(f"{file.parent} is not a readable adapter: {file.name}: {listing(opened.problems)}")
    return opened


def _read(file: SafetensorsFile, name: str) -> HostArray:
    values = file.read(name)
    refuse_not_finite(file.path, name, values)
    return values


def _mapper(file: Path, description: Mapping[str, Any]) -> Mapper:
    features = description["mapper_features"]
    if features != list(FEATURES):
        raise AdapterError(f"the mapper reads the features {shown(features)}, this version gives it {list(FEATURES)}")
    opened = _open(file)
    mapper = Mapper.from_arrays({name: _read(opened, name) for name in opened.shapes})
    if mapper.hidden_bias.shape != (description["mapper_hidden"],):
        raise AdapterError(f"the mapper has hidden size {mapper.hidden_bias.size}, not {description['mapper_hidden']}")
    return mapper


def _lora(file: Path, description: Mapping[str, Any], model: Base) -> Lora:
    sizes = model.config.sizes | {"A": description["rank"]}
    beyond = sorted({*description["targets"]} - {*targets_of(model.config)})
    if beyond:
        told = listing(beyond, ", ")
        raise AdapterError(f"adapter targets do not fit the model: no LoRA may be on {told} of {model.name}")
    opened, expected = _open(file), {}
    for target in description["targets"]:
        down, up = FACTOR_LETTERS[target]
        expected[f"lora.{target}.down"], expected[f"lora.{target}.up"] = (letters_to_shape(x, sizes) for x in (down, up))
    wrong = [f"missing {name}" for name in expected if name not in opened.shapes]
    wrong += [f"extra {name}" for name in opened.shapes if name not in expected]
    for name, shape in expected.items():
        if name in opened.shapes and opened.shapes[name] != shape:
            wrong.append(f"{name} has shape {list(opened.shapes[name])}, expected {list(shape)}")
    if wrong:
        raise AdapterError(f"adapter tensors do not fit the model: {listing(wrong)}")
    factors: dict[str, dict[str, Any]] = {"down": {}, "up": {}}
    for half, values in factors.items():
        for target in description["targets"]:
            values[target] = jnp.asarray(_read(opened, f"lora.{target}.{half}"))
    return Lora(factors["down"], factors["up"], jnp.float32(description["alpha"] / description["rank"]))
