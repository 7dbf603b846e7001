"""An adapter by what the user calls it: ours, PEFT's or the published release, in a directory or on the hub.

psynth_adapter.json                      ours                  `adapter_directory.py`
cache_mapper.pt and/or judger_lora/      the published layout  `release.py`
adapter_config.json                      a LoRA of PEFT alone  `peft.py`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from psynth_jax.convert import adapter_directory, peft, release
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.base import Base
from psynth_jax.convert.hub import download, is_hub_id, list_files
from psynth_jax.errors import AdapterError, InputError
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora

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
        if adapter_directory.describe(place)["base_fingerprint"] == model.fingerprint:
            return place
    return None


def find_adapter(source: str | Path) -> tuple[Path, Layout]:
    """Return the directory of an adapter, downloaded if it is on the hub, and how it is laid out.

    Raises `InputError` when there is no such directory or repository, `AdapterError` when it is no adapter.
    """
    directory = Path(source).expanduser()
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
    if (directory / "checkpoints").is_dir():
        raise AdapterError(f"{source} is the folder of a training run: `psynth export` makes an adapter of it")
    raise AdapterError(
        f"{source} is not an adapter: it has no psynth_adapter.json, {release.MAPPER}, {release.LORA} or {peft.CONFIG}"
    )


def holds_adapter(source: str | Path) -> bool:
    """Whether a source is an adapter; anything else may be a model.  Asks the hub about "owner/name"."""
    directory = Path(source).expanduser()
    if directory.is_dir():
        names = [path.relative_to(directory).as_posix() for path in directory.glob("*")]
        return bool(_MARKS & {*names}) or release.find_release(directory) is not None
    name = str(source).removeprefix("hf://")
    if directory.exists() or not isinstance(source, str) or not is_hub_id(name):
        return False
    return any(file.split("/")[0] in _MARKS or file.endswith(f"/{release.MAPPER}") for file in list_files(name))


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
      source: directory or hub id ("owner/name") of an adapter of ours, of a LoRA of PEFT, or of the published release
        (`cache_mapper.pt` and `judger_lora/`); or "smollm2-135m", the adapter that comes with this package.
      model: from `load_model`.

    Raises:
      InputError: no such directory, or the hub does not give it.
      AdapterError: it is not an adapter, of another format version, or its tensors do not fit the model.
      CheckpointError: a file is damaged, or a mapper file holds anything but tensors.
      ModelMismatchError: it was made for another base model.
    """
    directory, layout = find_adapter(source)
    if layout == "psynth":
        return adapter_directory.read_adapter(directory, model)
    if layout == "peft":
        lora, vocabulary = peft.read_peft(directory, model)
        return _adapter(lora, None, vocabulary, model)
    release.check_base(directory, model)
    mapper, sink = release.read_mapper(directory), release.noted_sink(directory, model)
    if not (directory / release.LORA).is_dir():
        return _adapter(None, mapper, release.noted_vocabulary(directory) or model.config.vocab_size, model, sink)
    lora, vocabulary = peft.read_peft(directory / release.LORA, model)
    return _adapter(lora, mapper, vocabulary, model, sink)


def _adapter(lora: Lora | None, mapper: Mapper | None, vocabulary: int, model: Base, sink: tuple[int, ...] = ()) -> Adapter:
    return Adapter(lora, mapper, None if vocabulary == model.config.vocab_size else vocabulary, sink)
