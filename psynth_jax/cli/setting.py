"""What several commands share: the terminal, JAX with programs kept on disk, models, text files, JSON."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from psynth_jax.bench.tuning_file import install_tilings
from psynth_jax.convert.load import load_model
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.sharding import make_mesh, mesh_sizes
from psynth_jax.synthesis.programs import keep_compiled_programs

# Paths, role names and what models write may hold anything: no markup is read in them.
console = Console(stderr=True, markup=False, highlight=False)


def start_jax(mesh: str | None = None) -> Mesh | None:
    """Start the devices with what was tuned for them, and keep compiled programs on disk; return the mesh asked for.

    On a CPU, JAX is told to make as many devices as the mesh has, unless the environment says how many.

    Raises `ConfigError` for a mesh that is not one, or that does not match the devices, and `UserError` for a damaged table
    of tilings.
    """
    if mesh is not None:
        needed = math.prod(mesh_sizes(mesh).values())
        chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        with contextlib.suppress(RuntimeError):  # the devices have been started already
            if not chosen:
                jax.config.update("jax_num_cpu_devices", needed)
    keep_compiled_programs()
    with without_libtpu_noise():
        jax.devices()
    install_tilings()
    return None if mesh is None else make_mesh(mesh)


def without_libtpu_noise() -> contextlib.AbstractContextManager[None]:
    """Drop what is written to stderr, if it can only be an installed libtpu that looks for a TPU and finds none."""
    machine_has_tpu = any(Path("/dev").glob("accel*")) or Path("/dev/vfio").exists()
    if importlib.util.find_spec("libtpu") is None or machine_has_tpu or os.environ.get("JAX_PLATFORMS"):
        return contextlib.nullcontext()
    return without_stderr()


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Drop what is written to stderr, by libraries in C++ too."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def load(source: str, dtype: str, mesh: str | None = None) -> Model:
    """Load a model, saying so."""
    devices = start_jax(mesh)
    with console.status(Text(f"loading {source}")):
        return load_model(source, dtype, devices)


def write_json(value: dict[str, Any]) -> None:
    """Print one JSON object, the only thing on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


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
