"""Models and adapters from any format into any other in which they make sense.

    model    Hugging Face, GGUF, ours (Orbax)            -> Hugging Face, ours
    adapter  ours, PEFT, the published release           -> ours, the published release (with PEFT's LoRA in it)
    adapter and its base                                 -> Hugging Face, merged

A result is written next to its place and moved there when it is whole.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.convert import release
from psynth_jax.convert.adapter_directory import Adapter, save_adapter
from psynth_jax.convert.adapter_numbers import refuse_not_finite, rounded
from psynth_jax.convert.adapters import (
    find_adapter,
    holds_adapter,
    load_adapter,
    refuse_training_run,
    trained_from,
    training_summary,
)
from psynth_jax.convert.load import open_model
from psynth_jax.convert.model_directory import write_model_directory
from psynth_jax.convert.progress import tell
from psynth_jax.convert.safetensors_file import read_json
from psynth_jax.convert.stream import ModelStream
from psynth_jax.convert.write_hf import write_hf
from psynth_jax.directories import replacing, writing
from psynth_jax.errors import ConfigError, InputError, UserError
from psynth_jax.nn.adapter import delta_of_weight
from psynth_jax.storage.paths import AnyPath, as_path, is_bucket

Format = Literal["psynth", "hf", "peft"]


def _refusal(adapter: bool, to: str, merge: bool) -> str | None:
    """Say why a model or adapter cannot become something; None: it can."""
    if to not in get_args(Format):
        return f"cannot become {to!r}; to must be one of {', '.join(get_args(Format))}"
    if merge and not (adapter and to == "hf"):
        return "cannot be merged: that folds an adapter into its base, so it must be an adapter, and to must be hf"
    if adapter and to == "hf" and not merge:
        return "is an adapter, and a model of transformers is a base with it: merge them, or convert to peft"
    return "is a model, and PEFT has adapters: convert it to hf or psynth" if not adapter and to == "peft" else None


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion made: "model" or "adapter", what it was made from, and what did not come along."""

    kind: Literal["model", "adapter"]
    source: str
    base: str | None
    dropped: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | AnyPath,
    to: Format,
    base: str | Path | None = None,
    merge: bool = False,
    dtype: str | None = None,
) -> Converted:
    """Convert a model or an adapter.

    Args:
      source: model directory (Hugging Face or ours), .gguf file, hub id or preset; or an adapter: ours, PEFT's, or the
        published release.
      target: directory to be made, here or in a bucket (gs://...); it must not be there, or be empty.
      to: "hf": safetensors that transformers loads.  "psynth": a model as an Orbax checkpoint that loads straight into
        shards, an adapter as `save_adapter` writes it.  "peft": an adapter in the published layout, whose `judger_lora`
        PEFT loads.
      base: the model that an adapter belongs to; None is the one that it names.
      merge: fold an adapter's LoRA into its base, for plain use; `to` must be "hf".
      dtype: of a model's parameters: "float32", "bfloat16" or "float16"; None is as they are stored.

    Raises:
      InputError: a conversion that makes no sense, no base, or a target that is there already.
      And what `load_model` and `load_adapter` raise.
    """
    adapter = holds_adapter(source)
    if (wrong := _refusal(adapter, to, merge)) is not None:
        raise InputError(f"{source} {wrong}")
    if adapter and not merge and dtype is not None:
        raise InputError("dtype is for models: an adapter keeps its own")
    if not adapter and base is not None:
        raise InputError(f"base is for adapters, and {source} is a model")
    place = as_path(target).expanduser()
    if adapter:
        find_adapter(source)  # what is wrong with it is said before anything long begins
    elif not is_bucket(source) and not _names_a_family(Path(source)):
        refuse_training_run(Path(source))
    with writing(place), replacing(place, (), "an empty directory") as fresh:
        if not adapter:
            stream = open_model(source, dtype)
            _write_model(fresh, stream, to)
            return Converted("model", str(source), None)
        stream = open_base(source, base, dtype)
        tell(f"checking that {source} belongs to {stream.name}")
        found = load_adapter(source, stream)
        if merge:
            return Converted("model", str(source), stream.name, _write_merged(fresh, stream, found))
        if to == "psynth":
            save_adapter(fresh, found, stream, training_summary(source))
        else:
            release.write_release(fresh, found, stream, training_summary(source))
        return Converted("adapter", str(source), stream.name)


def _names_a_family(directory: Path) -> bool:
    """Whether config.json is a model's: one of a training run has no model_type."""
    file = directory / "config.json"
    return file.is_file() and "model_type" in read_json(file)


def base_of(source: str | Path, base: str | Path | None) -> str | Path:
    """Return the base of an adapter: `base`, or the one that it names.

    Raises `InputError` when there is neither, or when `base` is an adapter.
    """
    named = trained_from(source) if base is None else base
    if named is None:
        raise InputError(f"{source} does not say which model it belongs to: give the model as base (--base MODEL)")
    if base is not None and (is_bucket(base) or Path(base).is_dir()) and holds_adapter(base):
        raise InputError(f"base must be the model that {source} belongs to, and {base} is an adapter")
    return named


def open_base(source: str | Path, base: str | Path | None, dtype: str | None = None) -> ModelStream:
    """Open the base of an adapter, see `base_of`.

    Raises `InputError`, naming --base, where the model that the adapter names is not here.
    """
    named = base_of(source, base)
    try:
        return open_model(named, dtype)
    except ConfigError:
        raise
    except UserError as error:
        if base is not None:
            raise
        raise InputError(
            f"{source} was made for the model {named!r}, which cannot be opened here: give the model with --base "
            f"(base in Python), a directory, file or hub id; {error}"
        ) from None


def _write_model(directory: Path, stream: ModelStream, to: Format) -> None:
    if to == "hf":
        write_hf(directory, stream, stream.config)
    else:
        write_model_directory(directory, stream)


def _write_merged(directory: Path, stream: ModelStream, adapter: Adapter) -> tuple[str, ...]:
    """Write the base with the LoRA added to its weights; return what a plain model cannot hold."""
    config = stream.config
    if adapter.vocabulary is not None:
        beyond = sorted(token for token in stream.stop_ids if token >= adapter.vocabulary)
        if beyond:
            raise InputError(
                f"the adapter writes only {adapter.vocabulary} tokens, the model ends with {beyond}: not merged"
            )
        config = config.model_copy(update={"vocab_size": adapter.vocabulary})

    def change(name: str, place: tuple[int, ...], values: HostArray) -> HostArray:
        if adapter.vocabulary is not None and name in ("embedding", "head"):
            return values[: adapter.vocabulary]
        target = name.removeprefix("layers.")
        if adapter.lora is None or target not in adapter.lora.down:
            return values
        name = f"{name} with the adapter, layer {place[0]}"
        with np.errstate(over="ignore", invalid="ignore"):
            changed = values.astype(np.float32) + delta_of_weight(adapter.lora, target, place[0])
        refuse_not_finite(stream.name, name, changed)
        return rounded(stream.name, name, changed, values.dtype)

    write_hf(directory, stream, config, change)
    return tuple(name for name, part in (("the cache mapper", adapter.mapper), ("the sink", adapter.sink)) if part)
