"""One piece of the GPU check, which `__main__.py` runs in a process of its own."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import jax

from psynth_jax.bench.gpu_check.records import Records
from psynth_jax.bench.gpu_check.sizes import full, miniature
from psynth_jax.engine.compilation_cache import keep_compiled_programs
from psynth_jax.errors import UserError

# Part -> piece -> the module and function that do it, in the order in which they run.
PARTS: dict[str, dict[str, tuple[str, str]]] = {
    "a": {
        "kernels": ("kernels", "check"),
        "large_cache": ("large_cache", "check"),
        "kernel_times": ("speed", "kernel_times"),
    },
    "b": {
        "ours": ("speed", "ours"),
        "torch": ("speed", "torch"),
        "train": ("speed", "training_step"),
    },
}
PIECES = PARTS["a"] | PARTS["b"]


def run_piece(name: str, file: Path, seconds: float, *, small: bool) -> None:
    """Run a piece, which writes what it finds into `file` as it goes.

    It begins nothing that would not be done after `seconds`.
    Raises `UserError` where JAX has no GPU and the sizes are those of one.
    """
    records = Records(file, time.monotonic() + seconds)
    if name != "torch":
        _start_jax(records, small=small)
    module, function = PIECES[name]
    piece = getattr(importlib.import_module(f"psynth_jax.bench.gpu_check.{module}"), function)
    piece(miniature() if small else full(), records)
    records.note(done=True, peak_bytes=_peak_bytes(name))


def _peak_bytes(name: str) -> int | None:
    """Return the most memory of the device that was in use; None on a CPU."""
    if name == "torch":
        import torch

        return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def _start_jax(records: Records, *, small: bool) -> None:
    device = jax.devices()[0]
    if device.platform != "gpu" and not small:
        raise UserError(f"JAX sees no GPU, only a {device.platform}: install jax with CUDA")
    keep_compiled_programs()  # a second run on the same machine compiles nothing again
    records.note(device=device.device_kind, platform=device.platform, jax=jax.__version__)


def main() -> None:
    """Run the piece that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PIECES)
    parser.add_argument("file", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    run_piece(given.name, given.file, given.seconds, small=given.miniature)


if __name__ == "__main__":
    main()
