"""What several commands share: the terminal, JAX with programs kept on disk, models, text files, JSON.

Importing this loads neither JAX nor a model: functions import what they need when they are called.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psynth_jax.cli.activity import activity, console
from psynth_jax.cli.streams import is_unicode
from psynth_jax.devices import check_xla_flags, import_jax, start_devices
from psynth_jax.errors import InputError
from psynth_jax.files import read_text

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from psynth_jax.model import Model
    from psynth_jax.nn.layer_forms import Layers

__all__ = [
    "activity", "console", "device_name", "load", "start_jax", "text_or_file", "without_stderr", "write_json",
]  # fmt: skip


def start_jax(mesh: str | None = None) -> Mesh | None:
    """Start the devices, and keep compiled programs on disk; return the mesh asked for.

    On a CPU, JAX is told to make as many devices as the mesh has, unless the environment says how many.  Its 64-bit mode is
    turned off: nothing here has 64 bits.

    Raises `ConfigError` for a mesh that is not one, or that does not match the devices, and for an environment that JAX does
    not start in.
    """
    check_xla_flags()
    import_jax()
    import jax

    from psynth_jax.engine.compilation_cache import keep_compiled_programs
    from psynth_jax.sharding import make_mesh, mesh_sizes

    jax.config.update("jax_enable_x64", False)
    if mesh is not None:
        needed = math.prod(mesh_sizes(mesh).values())
        chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        with contextlib.suppress(RuntimeError):  # the devices have been started already
            if not chosen:
                jax.config.update("jax_num_cpu_devices", needed)
    if jax.config.jax_compilation_cache_dir is None:  # else the environment, or a training run, has chosen
        keep_compiled_programs()
    with without_libtpu_noise():
        start_devices()
    return None if mesh is None else make_mesh(mesh)


def without_libtpu_noise() -> contextlib.AbstractContextManager[None]:
    """Drop what is written to stderr, if it can only be an installed libtpu that looks for a TPU and finds none."""
    machine_has_tpu = any(Path("/dev").glob("accel*")) or Path("/dev/vfio").exists()
    platforms = os.environ.get("JAX_PLATFORMS", "")
    asks_for_no_tpu = bool(platforms) and "tpu" not in platforms.split(",")
    if importlib.util.find_spec("libtpu") is None or machine_has_tpu or asks_for_no_tpu:
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


def load(source: str, dtype: str, mesh: str | None = None, layers: Layers = "auto", *, one_answer: bool = False) -> Model:
    """Load a model, saying so; layers as for `load_model`.  one_answer: of "auto", what starts faster."""
    with activity(f"loading {source}"):
        devices = start_jax(mesh)
        import jax

        from psynth_jax.convert.load import load_model

        # On a CPU programs of separate layers take seconds longer to compile, or to read from disk.
        if layers == "auto" and one_answer and jax.default_backend() == "cpu":
            layers = "stacked"
        return load_model(source, dtype, devices, layers)


def write_json(value: dict[str, Any]) -> None:
    """Print one JSON object, the only thing on stdout.  A stream that cannot take every character gets escapes."""
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_unicode(sys.stdout)) + "\n")
    sys.stdout.flush()


def text_or_file(value: str, what: str = "the text") -> str:
    """Return the text itself, the content of FILE for "@FILE", or standard input for "-".

    One new line at the end of a file belongs to the file, not to the text.

    Raises `InputError` for a file that cannot be read, and for bytes that are not UTF-8.
    """
    if value == "-":
        text = _standard_input(what)
    elif value.startswith("@"):
        text = _standard_input(what) if value == "@-" else read_text(Path(value[1:]))
    else:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"{what} is not UTF-8 text") from None
        return value
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


def _standard_input(what: str) -> str:
    if sys.stdin.isatty():
        console.print(f"reading {what} from the terminal; end it with Ctrl-D")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{what} on standard input is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"cannot read {what} from standard input: {error.strerror}") from None


def device_name() -> str:
    """Name the device that runs, as JAX calls it."""
    import jax

    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})" if device.device_kind != device.platform else str(device.platform)
