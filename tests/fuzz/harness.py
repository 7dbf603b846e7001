"""Damage a file, use it, and see whether what was said is what people should read.

    PSYNTH_FUZZ       mutations of each kind of file; 20 if not set
    PSYNTH_FUZZ_SEED  only the mutation of this seed, to see a failure again

Each use must succeed or be refused in one line, within seconds and a bounded memory, and leave nothing half-written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
import shutil
import signal
import subprocess
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from psynth_jax.errors import UserError
from tests.fuzz.mutations import Damage

FIXTURE = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0.tar.gz"
COUNT = int(os.environ.get("PSYNTH_FUZZ", "20"))
ONLY = os.environ.get("PSYNTH_FUZZ_SEED")
SECONDS = 20  # a use that takes longer hangs
GROWTH = 2 << 30  # bytes by which a use may make this process larger
LONGEST = 4000  # characters of an error


class HangError(BaseException):
    """A use takes too long.  Not an `Exception`, which somebody might handle."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where uses work.  tree: the good files, one of them damaged.  out: an empty folder for what is made."""

    tree: Path
    out: Path


@dataclasses.dataclass(frozen=True)
class Said:
    """What a use ended with: 0 done, 2 refused, anything else a fault."""

    code: int
    out: str
    err: str


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1048576\n"
SPECIAL: tuple[tuple[str, Callable[[Path], Any]], ...] = (
    ("missing", lambda path: None),
    ("empty", lambda path: path.touch()),
    ("a pointer of Git LFS", lambda path: path.write_text(POINTER)),
    ("a folder", lambda path: path.mkdir()),
    ("a FIFO", os.mkfifo),
    ("a link to itself", lambda path: path.symlink_to(path.name)),
    ("a page of HTML", lambda path: path.write_text("<!DOCTYPE html>\n<html><body>404</body></html>\n")),
)

Command = Callable[..., Said]
Use = Callable[[Place, Command], Said]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: which files of the tree are of it, how they are damaged, and how they are used then.

    fresh: folder of the tree that uses change, so that each gets a new one.
    """

    name: str
    files: tuple[str, ...]
    damage: Damage
    use: Use
    fresh: str | None = None


def called(function: Callable[[], Any]) -> Said:
    """Use the library itself where a command would take too long."""
    try:
        function()
    except UserError as error:
        return Said(2, "", f"error: {error}\n")
    return Said(0, "", "")


def unpack(folder: Path) -> Path:
    """Return a folder with the good files."""
    with tarfile.open(FIXTURE) as files:
        files.extractall(folder, filter="data")
    return folder


def fuzz(kind: Kind, place: Place, command: Command) -> None:
    """Use every mutation of a kind; fail with all that went wrong, told by their seeds."""
    good = kind.use(place, command)
    assert (good.code, _left(kind, place, good, _names(place.tree))) == (0, None), good.err
    wrong: list[str] = []
    seeds = range(-len(SPECIAL) * len(kind.files), COUNT) if ONLY is None else (int(ONLY),)
    for seed in seeds:
        problem = _try(kind, place, command, seed)
        if problem is not None:
            wrong.append(f"PSYNTH_FUZZ_SEED={seed} {problem}")
    if wrong:
        pytest.fail(f"{kind.name}: {len(wrong)} of {len(seeds)} went wrong\n" + "\n".join(wrong), pytrace=False)


def _try(kind: Kind, place: Place, command: Command, seed: int) -> str | None:
    """Return what went wrong with one mutation; None: nothing."""
    with _good_again(kind, place):
        name, said = _damage(kind, place, seed)
        before, largest = _names(place.tree), _largest()
        try:
            with _watchdog(), _reader_of(place.tree / name) as waited:
                done = kind.use(place, command)
        except HangError:
            return f"{name}: {said}: takes more than {SECONDS} s"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (every fault is told by its seed, a panic of Rust too)
            return f"{name}: {said}: {_told(error)}"
        problem = ("waits for a writer" if waited else None) or _problem(done) or _left(kind, place, done, before)
        grown = _largest() - largest
        if problem is None and grown > GROWTH:
            problem = f"took {grown >> 20} MiB"
        return None if problem is None else f"{name}: {said}: {problem}"


def _damage(kind: Kind, place: Place, seed: int) -> tuple[str, str]:
    """Damage a file in its place; return its name and what was done.  Seeds below 0 make it something else than a file."""
    if seed < 0:
        name, (said, replace) = kind.files[(-seed - 1) // len(SPECIAL)], SPECIAL[(-seed - 1) % len(SPECIAL)]
        (place.tree / name).unlink()
        replace(place.tree / name)
        return name, said
    random = Random(f"{kind.name} {seed}")
    name = random.choice(kind.files)
    damaged, said = kind.damage((place.tree / name).read_bytes(), random)
    (place.tree / name).write_bytes(damaged)
    return name, said


def _problem(done: Said) -> str | None:
    lines = done.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    shown = done.err[:600]
    if HangError.__name__ in done.err:
        return f"takes more than {SECONDS} s{_where(done.err)}"
    if done.code not in (0, 2):
        return f"exit code {done.code}: {shown}{_where(done.err)}"
    if "Traceback" in done.err or "panicked" in done.err:
        return f"a traceback: {shown}"
    if done.code == 2 and (len(errors), len(lines)) != (1, 1):
        return f"{len(errors)} errors in {len(lines)} lines: {shown}"
    if done.code == 2 and len(done.err) > LONGEST:
        return f"an error of {len(done.err)} characters: {shown}"
    if done.code == 0 and errors:
        return f"exit code 0 with an error: {shown}"
    return None


def _left(kind: Kind, place: Place, done: Said, before: set[str]) -> str | None:
    """Say what was left where nothing should be; empty `out`."""
    made = sorted(path.name for path in place.out.iterdir())
    shutil.rmtree(place.out)
    place.out.mkdir()
    if done.code == 2 and made:
        return f"left {made}: {done.err[:300]}"
    hidden = [name for name in made if name.startswith(".")]
    strange = {name for name in _names(place.tree) - before if kind.fresh is None or not name.startswith(kind.fresh)}
    if hidden or strange:
        return f"left {hidden} {sorted(strange)[:5]}"
    return None


@contextlib.contextmanager
def _good_again(kind: Kind, place: Place) -> Iterator[None]:
    """Put back what the block changes."""
    contents = {name: (place.tree / name).read_bytes() for name in kind.files}
    kept = place.tree.parent / "kept"
    if kind.fresh is not None:
        shutil.copytree(place.tree / kind.fresh, kept)
    try:
        yield
    finally:
        if kind.fresh is not None:
            shutil.rmtree(place.tree / kind.fresh)
            kept.rename(place.tree / kind.fresh)
        for name, content in contents.items():
            file = place.tree / name
            if file.is_dir():
                file.rmdir()
            elif not file.is_file():
                file.unlink(missing_ok=True)
            file.write_bytes(content)


@contextlib.contextmanager
def _watchdog() -> Iterator[None]:
    """Raise `HangError` in the block after some seconds.  What never returns to Python is ended by pytest's own limit."""

    def hangs(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _reader_of(file: Path) -> Iterator[list[bool]]:
    """Yield a list that gets an entry when the block waits for a FIFO, and free the block.

    By a process of its own: a library that waits hears of no signal, and may keep all threads of Python waiting.
    """
    found: list[bool] = []
    if not file.is_fifo():
        yield found
        return
    command = ["sh", "-c", 'while :; do : >"$1"; echo freed; done', "sh", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield found
        finally:
            time.sleep(0.05)
            process.kill()
            if "freed" in process.communicate()[0]:
                found.append(True)


def _names(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _where(said: str) -> str:
    """Return the last lines of our own in the file that an internal error names; remove the file."""
    found = re.search(r"details are in (\S+)", said)
    if found is None:
        return ""
    file = Path(found[1])
    lines = [line.strip() for line in file.read_text().splitlines() if "/psynth_jax/" in line]
    file.unlink()
    return " < ".join(line.rpartition("/psynth_jax/")[2] for line in lines[:-4:-1])


def _told(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in where if "/psynth_jax/" in frame.filename]
    frame = (ours or where)[-1]
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno} {frame.name})"
