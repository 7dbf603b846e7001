"""Files that users name: read what is a regular file, write atomically with the mode that the umask says.

A path may be one in a bucket.  Knows no format.  Whole directories are written by `directories.replacing`.
"""

from __future__ import annotations

import contextlib
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from psynth_jax.errors import InputError, UserError
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path


def refuse_special(path: str | AnyPath, error: type[UserError] = InputError) -> None:
    """Raise `error` for a FIFO, a socket or a device: reading one may never end.

    A path with nothing there passes; whoever opens it says so in its own words.  A bucket has none of these.
    """
    if isinstance(path, BucketPath):
        return
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise error(f"{path} is not a regular file")


def read_text(path: str | AnyPath, error: type[UserError] = InputError) -> str:
    """Return the text of a regular UTF-8 file.

    Raises `error`, naming the file, when it is absent, cannot be read, is not a regular file, or is not UTF-8.
    """
    refuse_special(path, error)
    try:
        return as_path(path).read_text(encoding="utf-8")
    except OSError as failed:
        raise error(f"cannot read {path}: {failed.strerror or failed}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not a UTF-8 text file") from None
    except ValueError as failed:
        raise error(f"cannot read {str(path)!r}: {failed}") from None


def write_text(path: str | AnyPath, text: str) -> None:
    """Replace a file atomically: a reader, or a kill, finds the old text or the new one.

    A link stays a link; what it points to is replaced.  Raises `OSError` when the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | AnyPath, content: bytes) -> None:
    """Replace a file atomically, as `write_text` does."""
    place = as_path(path)
    if isinstance(place, BucketPath):
        place.write_bytes(content)  # an object is replaced as a whole
        return
    target = place.resolve()
    # Not NamedTemporaryFile, which would leave the mode at 600 whatever the umask says.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / target.name
        part.write_bytes(content)
        part.replace(target)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without an end, which a process left that died while it appended.

    Raises `InputError` when the file cannot be read or mended.
    """
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    except OSError as error:
        raise InputError(f"cannot read and mend {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def umask_mode(path: Path) -> Iterator[None]:
    """Give a file that the block writes the mode that the umask says.

    For writers that make files which only their owner can read, as safetensors does.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


_POINTER = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of a large file that it has not fetched."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
    return False
