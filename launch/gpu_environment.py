"""Where psynth runs on a machine without a network: what launch/pack.sh packed is unpacked and put on Python's path.

pack/       archives, uploaded
.gpu/       wheels of them, and `site`, in which they are installed

`python launch/gpu_environment.py MODULE [arguments]` runs a module there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from archives import Wrong, unpack

ROOT = Path(__file__).resolve().parents[1]
PACK, WHEELS, SITE = ROOT / "pack", ROOT / ".gpu" / "wheels", ROOT / ".gpu" / "site"
# What psynth imports when it trains and evaluates.
NEEDED = (
    *("array_record", "cloudpickle", "flax", "gguf", "grain", "jax", "matplotlib", "optax", "orbax.checkpoint"),
    *("pyarrow", "pydantic", "rich", "tensorboardX", "transformers", "typer", "yaml"),
)


def prepared() -> dict[str, str]:
    """Return the environment of commands, with this checkout and what was packed on Python's path.

    Raises:
      Wrong: an archive or a package is missing.
      OSError: the disk does not take what is unpacked.
    """
    path = [str(ROOT)]
    if PACK.is_dir():
        unpack(PACK, ROOT)
        _install()
        path.append(str(SITE))
    path += [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    _check_packages(path)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return os.environ | offline | {"PYTHONPATH": os.pathsep.join(path)}


def _install() -> None:
    """Install the wheels into a folder of this checkout, unless that has been done with these wheels."""
    wheels = sorted(str(path) for path in WHEELS.glob("*.whl"))
    stamp = SITE / ".wheels"
    if not wheels or (stamp.is_file() and stamp.read_text(encoding="utf-8") == "\n".join(wheels)):
        return
    print(f"installing {len(wheels)} wheels into {SITE} ...", file=sys.stderr, flush=True)
    shutil.rmtree(SITE, ignore_errors=True)
    options = ["--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(SITE), *wheels]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise Wrong(f"pip could not install the wheels in {WHEELS}: see above")
    stamp.write_text("\n".join(wheels), encoding="utf-8")


def _check_packages(path: list[str]) -> None:
    before = list(sys.path)
    sys.path[:0] = path
    importlib.invalidate_caches()
    try:
        missing = [name for name in NEEDED if not _is_there(name)]
    finally:
        sys.path[:] = before
    if missing:
        raise Wrong(
            f"{sys.executable} lacks {', '.join(missing)}: run launch/pack.sh where there is a network, "
            f"and put its archives into {PACK}"
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def main() -> int:
    """Run a module in place of this process."""
    module, *arguments = sys.argv[1:]
    try:
        environment = prepared()
    except (Wrong, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


if __name__ == "__main__":
    sys.exit(main())
