"""`psynth info`: versions, devices, presets, and what a model is made of."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Annotated, Any

import jax
import typer

import psynth_jax
from psynth_jax.cli import view
from psynth_jax.cli.setting import console, device_name, start_jax, write_json
from psynth_jax.convert.load import cache_folder, open_model
from psynth_jax.presets import PRESETS

LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "safetensors", "gguf")


def info(
    model: Annotated[str | None, typer.Option(help="also describe this model, without loading its weights")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Show versions, devices and presets, or describe a model."""
    stream = open_model(model) if model is not None else None
    start_jax()
    facts: dict[str, Any] = {
        "psynth_jax": psynth_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": device_name(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cache": str(cache_folder()),
        "presets": sorted(PRESETS),
    }
    if stream is not None:
        facts["model"] = {"name": stream.name, **stream.config.model_dump(), "stop_ids": sorted(stream.stop_ids)}
    if as_json:
        write_json(facts)
        return
    described = facts.pop("model", {})
    console.print(view.facts(facts | described))
