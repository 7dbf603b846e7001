"""An adapter by what the user calls it: ours, PEFT's or the published release, in a directory, a bucket or on the hub.

psynth_adapter.json                      ours                  `adapter_directory.py`
cache_mapper.pt and/or judger_lora/      the published layout  `release.py`
adapter_config.json                      a LoRA of PEFT alone  `peft.py`
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from psynth_jax.convert import adapter_directory, peft, release
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.adapter_numbers import rounded
from psynth_jax.convert.base import Base
from psynth_jax.convert.hub import download, is_hub_id, list_files
from psynth_jax.errors import AdapterError, InputError, shown
from psynth_jax.mapper import Mapper
from psynth_jax.model import Model
from psynth_jax.nn.adapter import Lora
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path, is_bucket
from psynth_jax.storage.staging import list_files as list_files_in
from psynth_jax.storage.staging import staged
from psynth_jax.template_variables import TemplateVariables

Layout = Literal["psynth", "release", "peft"]
_SHIPPED = Path(__file__).parents[1] / "adapters"
_MARKS = {adapter_directory.DESCRIPTION, release.MAPPER, release.LORA, peft.CONFIG}
_HUB_FILES = ["*.json", "*.safetensors", release.MAPPER, f"*/{release.MAPPER}", "README.md"]


def shipped_adapters() -> list[Path]:
    """Return the directories of all adapters that are shipped with this package."""
    return [place.parent for place in sorted(_SHIPPED.glob(f"*/{adapter_directory.DESCRIPTION}"))]


def shipped_adapter(model: Base) -> Path | None:
    """Return the directory of the adapter that comes with this package for a model; None: there is none."""
    for place in shipped_adapters():
        if model.identity.matches(adapter_directory.describe(place)["base_fingerprint"]):
            return place
    return None


def no_shipped_adapter(model: Base) -> str | None:
    """Return the line to show where a model's name suggests a shipped adapter and none fits its weights; else None.

    Such a model is the same one in another dtype or quantisation, or a fine-tuned one.
    """
    if shipped_adapter(model) is not None:
        return None
    called = _letters(model.name)
    for place in shipped_adapters():
        described = adapter_directory.describe(place)
        base = str(described["base_name"])
        if _letters(base) in called:
            told = model.identity.told_from(described["base_fingerprint"], base, model.name)
            return f"no shipped adapter fits: {place.name} was made for {told}"
    return None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_adapter(source: str | Path) -> tuple[Path, Layout]:
    """Return the directory of an adapter, downloaded if it is on the hub or in a bucket, and how it is laid out.

    Raises `InputError` when there is no such directory or repository, `AdapterError` when it is no adapter.
    """
    directory = _from_bucket(source) if is_bucket(source) else _path(source)
    name = str(source).removeprefix("hf://")
    if not directory.is_dir() and Path(name).name == name and adapter_directory.is_adapter(_SHIPPED / name):
        directory = _SHIPPED / name
    elif not directory.is_dir():
        if not isinstance(source, str) or not is_hub_id(name):
            raise InputError(f"no such directory: {source}")
        directory = download(name, _HUB_FILES)
    if adapter_directory.is_adapter(directory):
        return directory, "psynth"
    if (found := release.find_release(directory)) is not None:
        return found, "release"
    if (directory / peft.CONFIG).is_file():
        return directory, "peft"
    refuse_training_run(directory)
    if any((directory / "snapshots").glob("*")):
        raise AdapterError(f"{source} is a folder of the hub's cache: name the hub id, or a folder in its snapshots")
    if (directory / "config.json").is_file():
        raise AdapterError(f"{source} is a model, not an adapter")
    raise AdapterError(
        f"{source} is not an adapter: it has no psynth_adapter.json, {release.MAPPER}, {release.LORA} or {peft.CONFIG}"
    )


def _from_bucket(source: str | AnyPath) -> Path:
    """Return the local copy of an adapter in a bucket."""
    place = as_path(source)
    names = _names_in(place)
    if any(name.startswith("checkpoints/") for name in names):
        raise AdapterError(f"{place} is the folder of a training run: its adapter is {place / 'adapter'}")
    if "config.json" in names and not _has_mark(names):
        raise AdapterError(f"{place} is a model, not an adapter")
    assert isinstance(place, BucketPath)
    return staged(place, _HUB_FILES)


def _names_in(place: AnyPath) -> list[str]:
    assert isinstance(place, BucketPath)
    return [each.name for each in list_files_in(place)]


def _has_mark(names: Iterable[str]) -> bool:
    """Whether files of these names, paths below a folder, make it an adapter."""
    return any(name.split("/")[0] in _MARKS or name.endswith(f"/{release.MAPPER}") for name in names)


def refuse_training_run(directory: Path) -> None:
    """Refuse the folder of a training run, ours or one of transformers, and say where its adapters are.

    Raises `AdapterError`.
    """
    if (directory / "checkpoints").is_dir():
        raise AdapterError(f"{directory} is the folder of a training run: `psynth export` makes an adapter of it")
    if checkpoints := _checkpoints_with_adapters(directory):
        raise AdapterError(
            f"{directory} is the folder of a training run with {len(checkpoints)} checkpoints: name one of them, "
            f"such as {checkpoints[-1]}"
        )


def _checkpoints_with_adapters(directory: Path) -> list[Path]:
    """Return what a Trainer of transformers saved on its way, oldest first."""
    found = []
    for place in directory.glob("checkpoint-*"):
        for inner in (place, place / "adapter"):
            if place.name.removeprefix("checkpoint-").isdecimal() and (inner / peft.CONFIG).is_file():
                found.append((int(place.name.removeprefix("checkpoint-")), inner))
    return [inner for _, inner in sorted(found)]


def _path(source: Any) -> Path:
    if not isinstance(source, str | Path):
        raise InputError(f"an adapter is named by a text or a path, not by {shown(source)}")
    try:
        return Path(source).expanduser()
    except RuntimeError:  # "~nobody"
        return Path(source)


def holds_adapter(source: str | Path) -> bool:
    """Whether a source is an adapter; anything else may be a model.  Asks the hub about "owner/name"."""
    if is_bucket(source):
        return _has_mark(_names_in(as_path(source)))
    directory = _path(source)
    if directory.is_dir():
        names = [path.relative_to(directory).as_posix() for path in directory.glob("*")]
        return bool(_MARKS & {*names}) or release.find_release(directory) is not None
    name = str(source).removeprefix("hf://")
    if directory.exists() or not isinstance(source, str) or not is_hub_id(name):
        return False
    return _has_mark(list_files(name))


def trained_from(source: str | Path) -> str | None:
    """Return the base model that an adapter names; None: it names none."""
    directory, layout = find_adapter(source)
    if layout == "psynth":
        return str(adapter_directory.describe(directory)["base_name"])
    return peft.named_base(directory / release.LORA if layout == "release" else directory)


def training_summary(source: str | Path) -> dict[str, Any]:
    """Return what an adapter says of its training; empty: nothing."""
    directory, layout = find_adapter(source)
    if layout == "psynth":
        return dict(adapter_directory.describe(directory).get("training") or {})
    return release.training_summary(directory) if layout == "release" else {}


def load_adapter(source: str | Path, model: Base) -> Adapter:
    """Read an adapter for `model`.

    Args:
      source: directory, also in a bucket (gs://...), or hub id ("owner/name") of an adapter of ours, of a LoRA of PEFT, or
        of the published release (`cache_mapper.pt` and `judger_lora/`); or "smollm2-135m", the adapter that comes with this
        package.
      model: from `load_model`.

    Raises:
      InputError: no such directory, or the hub does not give it.
      AdapterError: it is not an adapter, of another format version, or its tensors do not fit the model.
      CheckpointError: a file is damaged, or a mapper file holds anything but tensors.
      ModelMismatchError: it was made for another base model.
    """
    adapter = _read(source, model)
    if isinstance(model, Model) and adapter.lora is not None:
        # Factors are used in the model's dtype.
        dtype = model.rows("embedding", 0, 1).dtype
        for half, factors in (("down", adapter.lora.down), ("up", adapter.lora.up)):
            for target, values in factors.items():
                rounded(str(source), f"{half} of {target}", np.asarray(values), dtype)
    return adapter


def _read(source: str | Path, model: Base) -> Adapter:
    directory, layout = find_adapter(source)
    if layout == "psynth":
        return adapter_directory.read_adapter(directory, model)
    if layout == "peft":
        lora, vocabulary = peft.read_peft(directory, model)
        return _adapter(lora, None, vocabulary, model)
    release.check_base(directory, model)
    mapper, sink = release.read_mapper(directory), release.noted_sink(directory, model)
    template = release.noted_template(directory)
    if not (directory / release.LORA).is_dir():
        vocabulary = release.noted_vocabulary(directory) or model.config.vocab_size
        if vocabulary > model.config.vocab_size:
            raise AdapterError(f"{directory} chooses from {vocabulary} tokens, {model.name} has {model.config.vocab_size}")
        return _adapter(None, mapper, vocabulary, model, sink, template)
    lora, vocabulary = peft.read_peft(directory / release.LORA, model)
    return _adapter(lora, mapper, vocabulary, model, sink, template)


def _adapter(
    lora: Lora | None,
    mapper: Mapper | None,
    vocabulary: int,
    model: Base,
    sink: tuple[int, ...] = (),
    template: TemplateVariables | None = None,
) -> Adapter:
    return Adapter(lora, mapper, None if vocabulary == model.config.vocab_size else vocabulary, sink, template)
