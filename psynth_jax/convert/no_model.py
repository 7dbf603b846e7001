"""Directories that people give as a model and that are none: each is told apart, and what to give instead is named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from psynth_jax.convert.safetensors_file import read_json, refuse_pointer
from psynth_jax.errors import CheckpointError, listing
from psynth_jax.files import refuse_special

_CONFIG, _PEFT = "config.json", "adapter_config.json"
_ADAPTERS = ("psynth_adapter.json", "cache_mapper.pt", "judger_lora")
_READ = {".json", ".jinja", ".txt", ".model", ".safetensors"}  # endings of what may be read from a model's directory
_HUB = "models--"


def refuse_no_model(directory: Path) -> None:
    """Raise `CheckpointError` for a directory without a model, saying what it is and what to give instead.

    So too for one whose files are pointers of Git LFS, or no regular files.
    """
    for file in _files(directory):
        refuse_special(file, CheckpointError)
        refuse_pointer(file)
    if (directory / _CONFIG).is_file():
        return
    said = _what_it_is(directory)
    if said is not None:
        raise CheckpointError(f"{directory} is not a model: {said}")


def _files(directory: Path) -> list[Path]:
    """List what may be read: of the directory itself, and of the folder with further templates."""
    inside = _listed(directory)
    templates = directory / "additional_chat_templates"
    if templates.is_dir():
        inside += _listed(templates)
    return [path for path in inside if path.suffix in _READ]


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from None


def _what_it_is(directory: Path) -> str | None:
    if (directory / _PEFT).is_file():
        base = read_json(directory / _PEFT, finite=False).get("base_model_name_or_path")
        named = f", {base}," if isinstance(base, str) and base else ""
        return f"it is an adapter of PEFT; give its base{named} as the model, and this directory as the adapter"
    if any((directory / name).exists() for name in _ADAPTERS):
        return "it is an adapter; give its base as the model, and this directory as the adapter"
    if directory.name.startswith(_HUB) or (directory / "snapshots").is_dir():
        return _cached(directory)
    inside = _listed(directory)
    if any(path.name.startswith(_HUB) for path in inside):
        return "it is the hub's cache; give a model's name, such as owner/name"
    within = [path for path in inside if (path / _CONFIG).is_file()]
    if within:
        return f"it has no {_CONFIG}, but {_one_of(within)}"
    adapters = [path for path in inside if (path / _PEFT).is_file()]
    if adapters:
        return f"it holds adapters of PEFT; give their base as the model; as the adapter {_one_of(adapters)}"
    files = [path for path in inside if path.suffix == ".gguf"]
    if files:
        return f"it has no {_CONFIG}; give the file {files[0]}"
    if (directory / "checkpoints").is_dir():
        return "it is the folder of a training run of psynth: give the base that it was trained on as the model"
    return None


def weights_instead(directory: Path) -> str:
    """Say, behind a refusal, what a directory without weights has in their place; empty: nothing."""
    inside = _listed(directory)
    within = [path for path in inside if (path / _CONFIG).is_file()]
    if within:
        return f", but {_one_of(within)}"
    others = [path.name for path in inside if path.suffix == ".safetensors"]
    return f", but {listing(others, ', ')}: its names are not those of a whole model" if others else ""


def _cached(directory: Path) -> str:
    """Say what to give instead of the top of a model's folder in the hub's cache."""
    _, _, name = directory.name.partition(_HUB)
    choices = []
    if name:
        choices.append(name.replace("--", "/", 1))
    if (directory / "snapshots").is_dir():
        choices += [str(path) for path in _listed(directory / "snapshots")[:1]]
    instead = f"; give {' or '.join(choices)}" if choices else ""
    return f"it is a folder of the hub's cache{instead}"


def _one_of(within: Iterable[Path]) -> str:
    """Say which of the folders inside to give: of a trainer's checkpoints the last."""
    checkpoints = [path for path in within if path.name.removeprefix("checkpoint-").isdecimal()]
    if checkpoints:
        last = max(checkpoints, key=lambda path: int(path.name.removeprefix("checkpoint-")))
        return f"checkpoints of a training run; give one of them, such as {last}"
    return f"folders that may be meant; give one of them, such as {min(within)}"
