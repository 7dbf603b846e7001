"""What libraries raise while they read a user's files, as one line that names the file.

A damaged file makes some libraries raise almost anything: a plain `Exception`, a `KeyError` with a number for a message, a
panic of Rust, which is not even an `Exception`.  `reading` is the one place that knows it:

    with foreign.reading(path, "tokenizers"):
        backend = tokenizers.Tokenizer.from_file(str(path))

The block holds the call of the library and nothing else.  What one of our own functions raises below the block stays what
it is, so that our mistakes are not told as damaged files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from psynth_jax.errors import CheckpointError, UserError
from psynth_jax.files import is_lfs_pointer
from psynth_jax.storage.paths import AnyPath, BucketPath

_PACKAGE = Path(__file__).parent
_LONGEST = 300  # characters of a library's message that are shown


@dataclasses.dataclass(frozen=True)
class _Library:
    """A library that reads files.

    own: packages whose exceptions are the library's.  builtin: what else it raises about the content of a file.  said: what
    is wrong with a file when it raises.
    """

    own: tuple[str, ...]
    builtin: tuple[type[Exception], ...]
    said: str = "cannot be read"


# The builtin exceptions of code that takes the values of a file without a look at them.
_UNCHECKED = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_ANYTHING = (Exception,)

LIBRARIES: Mapping[str, _Library] = {
    "array_record": _Library(("array_record",), (*_UNCHECKED, SystemError)),
    # What Orbax, JAX and tensorstore meet in a bucket, besides what our own client says.
    "buckets": _Library(("google", "gcsfs", "fsspec", "aiohttp", "requests", "orbax"), _UNCHECKED),
    "gguf": _Library(("gguf",), (*_UNCHECKED, AssertionError), "is not a complete GGUF file"),
    "grain": _Library(("grain",), _UNCHECKED),
    "huggingface_hub": _Library(  # RuntimeError: of hf_xet, its own client for large files
        ("huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "filelock"),
        (OSError, ValueError, RuntimeError),
    ),
    "jax": _Library(("jax", "jaxlib"), (*_UNCHECKED, AssertionError, ImportError)),
    "jinja2": _Library(("jinja2",), _ANYTHING),  # a template calls functions
    "json": _Library(("json",), (ValueError, RecursionError), "is not valid JSON"),
    "numpy": _Library(("numpy", "tokenize"), (*_UNCHECKED, EOFError, SyntaxError)),  # np.load
    "orbax": _Library(("orbax",), _ANYTHING),
    "pyarrow": _Library(("pyarrow",), (*_UNCHECKED, ImportError)),  # ImportError: no data base of time zones
    "safetensors": _Library(("safetensors", "safetensors_rust"), _UNCHECKED, "is not a complete safetensors file"),
    "tensorstore": _Library(("tensorstore",), _UNCHECKED),
    "tokenizers": _Library(("tokenizers",), _ANYTHING),  # it raises `Exception` itself
    "transformers": _Library(("transformers",), _ANYTHING, "cannot be loaded"),
    "yaml": _Library(("yaml",), (*_UNCHECKED, AssertionError), "is not valid YAML"),
}


@contextmanager
def reading(path: str | AnyPath, library: str, error: type[UserError] = CheckpointError) -> Iterator[None]:
    """Turn what a library raises in the block into `error`: one line that names the file and has the library's reason.

    A `UserError` passes as it is, and so does what would hide that the process is to end or is out of memory.

    Args:
      path: the file, or the directory, that is read.
      library: a key of `LIBRARIES`.
      error: what is raised.
    """
    known = LIBRARIES[library]
    try:
        yield
    except BaseException as raised:
        if not is_raised_by(library, raised):
            raise
        raise error(_told(path, f"{known.said}: {reason(raised)}")) from None


def is_raised_by(library: str, raised: BaseException) -> bool:
    """Whether an exception, caught around a call of a library, is about what it read.  `reading` asks this."""
    if isinstance(raised, UserError | KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        return False
    if _is_ours(raised.__traceback__) or "RESOURCE_EXHAUSTED" in str(raised):
        return False
    known = LIBRARIES[library]
    if isinstance(raised, known.builtin) or _is_panic(raised):
        return True
    homes = {kind.__module__.partition(".")[0] for kind in type(raised).__mro__}
    return isinstance(raised, Exception) and not homes.isdisjoint(known.own)


def reason(raised: BaseException) -> str:
    """Return what an exception says in one line of bounded length; its class where it says nothing."""
    strerror = raised.strerror if isinstance(raised, OSError) else None
    text = " ".join(str(strerror or raised).split())
    if isinstance(raised, KeyError) or not text:
        text = f"{type(raised).__name__} {text}".strip()  # the message of a KeyError is the key alone
    return _cut(text)


def first_line(raised: BaseException) -> str:
    """Return the first line of what an exception says: some libraries add advice, and addresses, on others."""
    return reason(raised) if isinstance(raised, KeyError) else _cut(str(raised).strip().split("\n")[0] or reason(raised))


def _cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair cannot be printed
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def lfs_pointer(path: str | Path) -> str:
    """Say that a file is a pointer of Git LFS, and how to get what it stands for."""
    return f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {Path(path).parent}"


def _told(path: str | AnyPath, said: str) -> str:
    local = None if isinstance(path, BucketPath) else Path(path)
    if local is not None and local.is_file() and is_lfs_pointer(local):
        return lfs_pointer(local)
    return f"{path} {said}"


def _is_panic(raised: BaseException) -> bool:
    """Whether Rust code gave up.  The class has no module that it could be imported from, and is no `Exception`."""
    return type(raised).__name__ == "PanicException"


def _is_ours(traceback: TracebackType | None) -> bool:
    """Whether an exception was raised by a function of this package that the block, or a library in it, has called."""
    files = []
    while traceback is not None:
        files.append(Path(traceback.tb_frame.f_code.co_filename))
        traceback = traceback.tb_next
    below = files[2:]  # after this module's own frame and that of the block
    return bool(below) and _PACKAGE in below[-1].parents
