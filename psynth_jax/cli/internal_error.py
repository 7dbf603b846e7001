"""What the command says when it fails by its own fault: one line, and a file with all that a report of it needs.

The file has the command, versions and the traceback; no values of variables, and nothing of the environment.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence

import psynth_jax
from psynth_jax.errors import is_out_of_memory
from psynth_jax.foreign import reason

DEBUG = "PSYNTH_DEBUG"  # set to 1, the traceback goes to stderr
_LIBRARIES = (
    *("jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers", "safetensors", "gguf", "orbax-checkpoint"),
    *("grain", "pyarrow", "pydantic", "typer"),
)


def told(error: BaseException, arguments: Sequence[str]) -> tuple[str, str, int]:
    """Return the kind, the text and the exit code for what ended a command and is no `UserError`.

    A file with the details is written, and named in the text.  Too little memory is no fault of ours.
    """
    if is_out_of_memory(error):
        return "error", "there is not enough memory for this: use a smaller model or input, or dtype bfloat16", 2
    said = f"{type(error).__name__}: {reason(error)}"
    if os.environ.get(DEBUG) == "1":
        traceback.print_exception(error, file=sys.stderr)
        return "internal error", said, 1
    return "internal error", f"{said}; {_kept(error, arguments)}", 1


def _kept(error: BaseException, arguments: Sequence[str]) -> str:
    """Write the details to a file; say where."""
    try:
        # Only its owner can read it: the command may hold what a user asked.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="psynth-error-", suffix=".log", delete=False
        ) as file:
            file.write(_details(error, arguments))
    except OSError:
        return f"set {DEBUG}=1 to see where"
    return f"details are in {file.name}"


def _details(error: BaseException, arguments: Sequence[str]) -> str:
    versions = [f"psynth_jax {psynth_jax.__version__}", f"python {platform.python_version()} on {platform.platform()}"]
    versions += [f"{name} {_version(name)}" for name in _LIBRARIES]
    lines = [shlex.join(["psynth", *arguments]), "", *versions, "", *traceback.format_exception(error)]
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
