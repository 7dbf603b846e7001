"""Starting JAX: what the environment says wrongly is one line, not a traceback of JAX or an abort of XLA.

JAX reads its variables when it is imported, and XLA_FLAGS when the first device is asked for.  Imports neither before that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from psynth_jax.errors import ConfigError
from psynth_jax.foreign import reason

if TYPE_CHECKING:
    import jax

_VARIABLES = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_DEFAULT_DEVICE", "CUDA_VISIBLE_DEVICES")
_PARSE_XLA_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def import_jax() -> None:
    """Import JAX.  Raises `ConfigError` for a variable of the environment that JAX cannot read."""
    try:
        import jax  # noqa: F401
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"JAX does not start: {reason(error)}; correct or unset that variable") from None


def start_devices() -> list[jax.Device]:
    """Start JAX's devices, if they are not, and return them.

    Raises `ConfigError` for a platform that is not here and for settings that JAX or this library cannot run with.
    """
    import jax

    check_x64()
    try:
        return jax.devices()
    except (RuntimeError, ValueError, AssertionError) as error:  # AssertionError: a plugin that found no device
        raise ConfigError(f"JAX finds no device: {_told(error)}") from None


def check_x64() -> None:
    """Raise `ConfigError` where JAX makes 64-bit numbers: positions are int32 here, and weights float32 at most."""
    import jax

    if jax.config.jax_enable_x64:
        raise ConfigError(
            "JAX's 64-bit mode is on, and psynth_jax computes in 32 bits at most: unset JAX_ENABLE_X64, or call "
            'jax.config.update("jax_enable_x64", False)'
        )


def check_xla_flags() -> None:
    """Raise `ConfigError` for XLA_FLAGS that XLA would end the process for.  Another process tries them."""
    if not os.environ.get("XLA_FLAGS", "").strip():
        return
    tried = subprocess.run(
        [sys.executable, "-c", _PARSE_XLA_FLAGS],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if tried.returncode == 0:
        return
    first = (tried.stderr.strip().splitlines() or ["XLA cannot read them"])[0]
    said = first.partition("] ")[2] or first  # "F1126 20:56:42.391367 11890 parse_flags_from_env.cc:234] Unknown flag ..."
    raise ConfigError(f"XLA_FLAGS is wrong: {said[:300]}")


def _told(error: Exception) -> str:
    """Say what JAX says, and which variables decide about devices."""
    said = reason(error) if str(error).strip() else "its plugin gives no reason"
    named = [f"{name} is {os.environ[name]!r}" for name in _VARIABLES if os.environ.get(name)]
    return "; ".join([said, *named]) + ("; JAX_PLATFORMS=cpu runs without an accelerator" if "cpu" not in said else "")
