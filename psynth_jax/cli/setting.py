"""What several commands share: loading a model with the on-disk compilation cache, and printing JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from psynth_jax.convert.load import cache_folder, load_model
from psynth_jax.errors import InputError
from psynth_jax.model import Model

console = Console(stderr=True)


def load(source: str, dtype: str) -> Model:
    """Load a model, saying so; compiled programs are kept on disk, so that the next start is fast."""
    folder: Path = cache_folder() / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    with console.status(f"loading {source}"):
        return load_model(source, dtype)


def write_json(value: dict[str, Any]) -> None:
    """Print one JSON object, the only thing on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def text_or_file(value: str) -> str:
    """Return the text itself, or the content of FILE for "@FILE".  Raises `InputError` for a file that cannot be read."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {value[1:]}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{value[1:]} is not a UTF-8 text file") from None


def device_name() -> str:
    """Name the device that runs, as JAX calls it."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})" if device.device_kind != device.platform else str(device.platform)
