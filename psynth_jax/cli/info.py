"""`psynth info`: versions, devices, presets, and what a model is made of."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

import psynth_jax
from psynth_jax.cli import view
from psynth_jax.cli.options import AsJson
from psynth_jax.cli.setting import activity, console, device_name, start_jax, write_json
from psynth_jax.errors import InputError

if TYPE_CHECKING:
    from psynth_jax.convert.stream import ModelStream

LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "safetensors", "gguf")


def info(
    source: Annotated[
        str | None, typer.Argument(help="describe this model: preset, model directory, .gguf file, or hub id")
    ] = None,
    model: Annotated[str | None, typer.Option(help="the same as SOURCE")] = None,
    programs: Annotated[bool, typer.Option("--programs", help="list what a process on this device can compile")] = False,
    as_json: AsJson = False,
) -> None:
    """Show versions, devices and presets, or describe a model; its weights are read from disk, not put on a device."""
    if source is not None and model is not None:
        raise InputError("SOURCE and --model contradict each other: name the model once")
    name = model if source is None else source
    described = {} if name is None else _model(name)
    facts = described | _installation()
    if programs:
        facts["programs"] = _programs()
    if as_json:
        write_json(facts)
        return
    config, listed = facts.pop("model", {}), facts.pop("programs", [])
    console.print(view.facts(facts | {name: value for name, value in config.items() if name not in facts}))
    if listed:
        console.print(view.programs(listed))


def _programs() -> list[dict[str, Any]]:
    """Return the programs that can be compiled, as data."""
    from psynth_jax.engine.machine import buckets_here

    found = []
    for program in buckets_here().programs():
        when = "default" if program.is_default else "first use"
        found.append({"program": program.name, **program.shape._asdict(), "compiled": when})
    return found


def _installation() -> dict[str, Any]:
    import jax

    from psynth_jax.presets import PRESETS
    from psynth_jax.storage.staging import known_cache_folder

    with activity("starting devices"):
        start_jax()
    cache = known_cache_folder()
    return {
        "psynth_jax": psynth_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": device_name(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cache": None if cache is None else str(cache),
        "presets": sorted(PRESETS),
    }


def _model(name: str) -> dict[str, Any]:
    """Describe a model without putting it on a device: what it is, what names its weights, which adapter fits."""
    from psynth_jax.convert.adapters import shipped_adapter, shipped_adapters
    from psynth_jax.convert.load import open_model

    with activity(f"reading {name}"):
        stream = open_model(name)
        fitting = shipped_adapter(stream)
        return {
            "source": name,
            "family": stream.config.family,
            "parameters": sum(math.prod(stored.shape) for stored in stream.parameters),
            "layers": stream.config.layers,
            "fingerprint": stream.fingerprint,
            "adapter": None if fitting is None else fitting.name,
            "adapters": [path.name for path in shipped_adapters()],
            "model": _config(stream),
        }


def _config(stream: ModelStream) -> dict[str, Any]:
    return {"name": stream.name, **stream.config.model_dump(), "stop_ids": sorted(stream.stop_ids)}
