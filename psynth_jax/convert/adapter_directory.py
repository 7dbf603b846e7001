"""An adapter on disk: the synthesizer's LoRA and cache mapper, with what is needed to refuse the wrong model.

DIR/psynth_adapter.json       format version, fingerprint of the base model, rank, alpha, targets, mapper, sink, training
                              summary
DIR/adapter.safetensors       lora.<target>.down, lora.<target>.up (letters of `nn.adapter.FACTOR_LETTERS`)
DIR/mapper.safetensors        hidden_kernel, hidden_bias, out_kernel, out_bias
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from psynth_jax.axes import HostArray, letters_to_shape
from psynth_jax.convert.base import Base
from psynth_jax.convert.rules import parameter_dtype
from psynth_jax.convert.safetensors_file import read_json
from psynth_jax.directories import replacing
from psynth_jax.errors import AdapterError, ModelMismatchError, listing
from psynth_jax.mapper import FEATURES, Mapper
from psynth_jax.nn.adapter import FACTOR_LETTERS, Lora, targets_of

FORMAT = 1
DESCRIPTION, _LORA, _MAPPER = "psynth_adapter.json", "adapter.safetensors", "mapper.safetensors"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What makes a synthesizer of a base model.

    lora None: the base weights; mapper None: the identity.  vocabulary: it writes only the first so many tokens; None: all.
    sink: tokens that it reads once, as a branch before all others, which are encoded after them; empty: it has none.
    """

    lora: Lora | None
    mapper: Mapper | None
    vocabulary: int | None = None
    sink: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of all that decides what is computed: the same wherever the adapter lies."""
        summed = hashlib.sha256(repr((self.vocabulary, self.sink)).encode())
        for path, leaf in jax.tree.leaves_with_path((self.lora, self.mapper)):
            values = np.asarray(leaf)
            summed.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
            summed.update(values.tobytes())
        return summed.hexdigest()


def save_adapter(
    directory: str | Path,
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
    """
    lora, mapper, numbers = adapter.lora, adapter.mapper, parameter_dtype(dtype)
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
        "training": dict(training or {}),
    }
    with replacing(Path(directory), (DESCRIPTION, _LORA, _MAPPER), "an adapter directory") as fresh:
        if lora is not None:
            factors = {f"lora.{name}.down": np.asarray(value, numbers) for name, value in lora.down.items()}
            factors |= {f"lora.{name}.up": np.asarray(value, numbers) for name, value in lora.up.items()}
            safetensors.numpy.save_file(factors, fresh / _LORA)
        if mapper is not None:
            arrays = {field.name: np.asarray(getattr(mapper, field.name)) for field in dataclasses.fields(mapper)}
            safetensors.numpy.save_file(arrays, fresh / _MAPPER)
        (fresh / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def is_adapter(directory: Path) -> bool:
    """Whether a directory is one of ours."""
    return (directory / DESCRIPTION).is_file()


def describe(directory: Path) -> dict[str, Any]:
    """Return what an adapter says of itself: psynth_adapter.json."""
    return read_json(directory / DESCRIPTION, finite=False)  # a summary may tell of a loss that was no number


def read_adapter(source: Path, model: Base) -> Adapter:
    """Read an adapter for `model`.

    Raises:
      AdapterError: it is not an adapter, of another format version, damaged, or its tensors do not fit the model.
      ModelMismatchError: it was made for another base model.
    """
    try:
        description = json.loads((source / DESCRIPTION).read_text(encoding="utf-8"))
        version = description["format"]
        if version != FORMAT:
            raise AdapterError(f"{source}: adapter format {version}, this version reads format {FORMAT}")
        if not model.identity.matches(description["base_fingerprint"]):
            noted = description["base_fingerprint"]
            told = model.identity.told_from(noted, description["base_name"], model.name)
            raise ModelMismatchError(f"{source} was made for the base model {told}")
        lora = _lora(_read(source / _LORA), description, model) if description["targets"] else None
        mapper = _mapper(_read(source / _MAPPER), description) if description["mapper_hidden"] else None
        vocabulary = int(description["vocab_size"])
        sink = checked_sink(description.get("sink", []), model, source / DESCRIPTION)
    except FileNotFoundError as error:
        raise AdapterError(f"{source} is not an adapter directory: {Path(error.filename).name} is missing") from None
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise AdapterError(f"{source} is not a readable adapter: {' '.join(str(error).split())}") from None
    if not 1 <= vocabulary <= model.config.vocab_size:
        raise AdapterError(f"{source} chooses from {vocabulary} tokens, {model.name} has {model.config.vocab_size}")
    return Adapter(lora, mapper, None if vocabulary == model.config.vocab_size else vocabulary, sink)


def checked_sink(noted: Any, model: Base, file: Path) -> tuple[int, ...]:
    """Return the tokens of a sink that a file notes.  Raises `AdapterError` for what are no tokens of the model."""
    if not isinstance(noted, list) or not all(type(x) is int and 0 <= x < model.config.vocab_size for x in noted):
        raise AdapterError(f"{file}: sink must be a list of token ids of {model.name}, not {noted!r}")
    return tuple(noted)


def _read(file: Path) -> dict[str, HostArray]:
    if not file.is_file():  # safetensors would not say which file
        raise FileNotFoundError(errno.ENOENT, "no such file", str(file))
    return safetensors.numpy.load_file(file)


def _mapper(arrays: dict[str, HostArray], description: Mapping[str, Any]) -> Mapper:
    features = description["mapper_features"]
    if features != list(FEATURES):
        raise AdapterError(f"the mapper reads the features {features}, this version gives it {list(FEATURES)}")
    mapper = Mapper.from_arrays(arrays)
    if mapper.hidden_bias.shape != (description["mapper_hidden"],):
        raise AdapterError(f"the mapper has hidden size {mapper.hidden_bias.size}, not {description['mapper_hidden']}")
    return mapper


def _lora(tensors: dict[str, HostArray], description: Mapping[str, Any], model: Base) -> Lora:
    sizes = model.config.sizes | {"A": description["rank"]}
    beyond = sorted({*description["targets"]} - {*targets_of(model.config)})
    if beyond:
        told = listing(beyond, ", ")
        raise AdapterError(f"adapter targets do not fit the model: no LoRA may be on {told} of {model.name}")
    expected = {}
    for target in description["targets"]:
        down, up = FACTOR_LETTERS[target]
        expected[f"lora.{target}.down"], expected[f"lora.{target}.up"] = (letters_to_shape(x, sizes) for x in (down, up))
    wrong = [f"missing {name}" for name in expected if name not in tensors]
    wrong += [f"extra {name}" for name in tensors if name not in expected]
    wrong += [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if wrong:
        raise AdapterError(f"adapter tensors do not fit the model: {listing(wrong)}")
    factors = {
        half: {t: jnp.asarray(tensors[f"lora.{t}.{half}"]) for t in description["targets"]} for half in ("down", "up")
    }
    return Lora(factors["down"], factors["up"], jnp.float32(description["alpha"] / description["rank"]))
