"""Run the GPU check: python -m psynth_jax.bench.gpu_check; `launch/gpu_check.sh` does.

Functions import what needs other packages: first it is checked that these are installed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NEEDED = (
    *("jax", "flax", "numpy", "pydantic", "transformers", "safetensors"),
    *("optax", "orbax", "grain", "yaml", "rich", "torch"),
)
LEAST_SECONDS = 15.0  # a piece is not begun with less


def missing_packages() -> list[str]:
    """Return the names of packages that the check needs and cannot import."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def has_gpu() -> bool:
    """Ask the CUDA driver whether it sees a GPU; neither JAX nor torch is started for that."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return False
    return count.value > 0


def main() -> None:
    """Run what the command line asks for.

    Exits with 0 if all is as it should be, with 2 if nothing could be run, and else with 1.
    """
    given = _arguments()
    missing = missing_packages()
    if missing:
        names = ", ".join(missing)
        sys.exit(_refused(f"missing packages: {names}; install them for {sys.executable}"))
    if not given.miniature and not has_gpu():
        sys.exit(_refused("no GPU here: run it where there is one, or with --miniature"))
    parts = ("a", "b") if given.part == "all" else (given.part,)
    given.into.mkdir(parents=True, exist_ok=True)
    found = run(parts, given.into, small=given.miniature)
    sys.exit(0 if found["ok"] else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/gpu_check.sh", description="Check a GPU.")
    parts = ("a", "b", "all")
    parser.add_argument("--part", choices=parts, default="all", help="a: numbers; b: speed")
    parser.add_argument("--miniature", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("gpu_check"),
        help="folder for gpu_check.json, gpu_check.txt and logs",
    )
    return parser.parse_args()


def _refused(why: str) -> int:
    sys.stderr.write(f"error: {why}\n")
    return 2


def run(parts: tuple[str, ...], into: Path, *, small: bool) -> dict[str, Any]:
    """Run the pieces of some parts; write and show what they find after each of them.

    Pieces of another part that an earlier run left in the same folder stay in the report.
    """
    from psynth_jax.bench.gpu_check.piece import PARTS
    from psynth_jax.bench.gpu_check.sizes import full, miniature

    sizes = miniature() if small else full()
    kept = _earlier(into, small=small)
    pieces = {name: piece for name, piece in kept.items() if piece["part"] not in parts}
    for part in parts:
        ends = time.monotonic() + sizes.part_seconds
        for name in PARTS[part]:
            left = ends - time.monotonic()
            share = min(left, sizes.piece_seconds.get(name, left))
            pieces[name] = {"part": part, **_piece(name, into, share, left, small=small)}
            found = _written(pieces, into, small=small)
    _show(found, into)
    return found


def _earlier(into: Path, *, small: bool) -> dict[str, Any]:
    file = into / "gpu_check.json"
    if not file.is_file():
        return {}
    before = json.loads(file.read_text())
    return dict(before["pieces"]) if before["miniature"] == small else {}


def _piece(name: str, into: Path, share: float, left: float, *, small: bool) -> dict[str, Any]:
    """Run a piece in a process of its own; return what it wrote.

    It begins nothing new after `share` seconds, and is ended when it passes that by half, or when
    the `left` seconds of its part are over.
    """
    if left < LEAST_SECONDS:
        return {"error": f"not begun: {max(left, 0):.0f} s were left of its part", "seconds": 0.0}
    limit = min(1.5 * share, left)
    sys.stderr.write(f"{name} ...\n")
    file, log = into / f"{name}.json", into / f"{name}.log"
    file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "psynth_jax.bench.gpu_check.piece",
        name,
        str(file),
        str(share),
    ]
    # With preallocation JAX would hold most of the memory, and peak_bytes would say nothing.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1"}
    if name == "torch":
        environment["JAX_PLATFORMS"] = "cpu"
    if small:
        command.append("--miniature")
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    begin = time.monotonic()
    error = None
    with log.open("w") as said:
        try:
            done = subprocess.run(
                command,
                stdout=said,
                stderr=said,
                env=environment,
                check=False,
                timeout=limit,
            )
            if done.returncode:
                error = f"exit code {done.returncode}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            error = f"ended after {limit:.0f} s"
    found = json.loads(file.read_text()) if file.is_file() else {}
    found["seconds"] = time.monotonic() - begin
    return found if error is None else found | {"error": error}


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"


def _written(pieces: dict[str, Any], into: Path, *, small: bool) -> dict[str, Any]:
    """Write the report of what is known so far."""
    from psynth_jax.bench.gpu_check import report
    from psynth_jax.files import write_text

    wrong = []
    for name, piece in pieces.items():
        wrong += report.unsound(name, piece)
    found = {
        "check": "gpu",
        "miniature": small,
        "command": shlex.join(["launch/gpu_check.sh", *sys.argv[1:]]),
        "device": _of(pieces, "device"),
        "jax": importlib.metadata.version("jax"),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "python": sys.version.split()[0],
        "figures": report.figures(pieces),
        "workers": report.workers(pieces),
        "pieces": pieces,
        "wrong": wrong,
        "ok": not wrong,
    }
    write_text(into / "gpu_check.json", json.dumps(found, indent=2) + "\n")
    return found


def _of(pieces: dict[str, Any], fact: str) -> Any:
    """Return a fact that some piece of JAX noted."""
    for piece in pieces.values():
        if "platform" in piece:
            return piece[fact]
    return None


def _show(found: dict[str, Any], into: Path) -> None:
    from rich.console import Console

    from psynth_jax.bench.gpu_check import report

    report.show(Console(width=140), found)
    with (into / "gpu_check.txt").open("w") as file:
        report.show(Console(file=file, width=140), found)


if __name__ == "__main__":
    main()
