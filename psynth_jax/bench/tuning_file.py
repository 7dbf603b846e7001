"""The user's table of tilings: one JSON file per kind of device, in the cache folder.

    <cache folder>/tuned/nvidia-h100-80gb-hbm3.json

`psynth` reads it when it starts, and `psynth bench kernel --tune` writes it.  In Python: `install_tilings()`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from psynth_jax.directories import followed
from psynth_jax.errors import UserError
from psynth_jax.files import refuse_special, write_text
from psynth_jax.ops.branch_attention import tuned
from psynth_jax.ops.branch_attention.tuned import Key, Table
from psynth_jax.storage.staging import known_cache_folder


def table_file(device_kind: str) -> Path | None:
    """Return where the tilings for a kind of device are kept; None where no cache folder is known."""
    folder = known_cache_folder()
    return None if folder is None else folder / "tuned" / f"{tuned.slug(device_kind)}.json"


def install_tilings() -> None:
    """Take tilings from the user's file for the devices here, where it has none from what comes with the library.

    With several processes the file is left alone: each host has its own, and all processes must use the same tilings.

    Raises `UserError` for a file that cannot be used, saying what is wrong with it.
    """
    kind = tuned.local_kind()
    file = table_file(kind)
    text = _text(file) if file is not None and jax.process_count() == 1 else None
    if file is None or text is None:
        tuned.install(None)
        return
    tuned.install(Table(kind, tuned.shipped(kind).tilings | tuned.read(text, file, kind).tilings))


def record(device_kind: str, entries: Mapping[Key, dict[str, Any] | None]) -> Path:
    """Set entries of the user's file, or take those that are None out; return the file.  It is replaced as a whole.

    Raises `UserError` for a file that cannot be used or written.
    """
    file = table_file(device_kind)
    if file is None:
        raise UserError("there is no home directory to keep tilings in: set PSYNTH_CACHE to a folder that can be written")
    text = _text(file)
    kept = {} if text is None else tuned.read_json(text, file, device_kind)["entries"]
    kept |= {str(key): entry for key, entry in entries.items()}
    left = {key: kept[key] for key in sorted(kept) if kept[key] is not None}
    table = {"format": tuned.FORMAT, "device_kind": device_kind, "entries": left}
    tuned.read(json.dumps(table), file, device_kind)
    if left or text is not None:
        _replace(file, json.dumps(table, indent=1) + "\n")
    return file


def _text(file: Path) -> str | None:
    refuse_special(file, UserError)
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if not os.access(file.parent, os.X_OK):  # a cache folder that cannot be entered is slow, not wrong
            return None
        raise UserError(f"cannot read the tilings in {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is no table of tilings: not a UTF-8 text file; delete it") from None


def _replace(file: Path, text: str) -> None:
    """Write a file next to its place, then move it there: nobody ever reads half of it."""
    try:
        followed(file).parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise UserError(
            f"cannot write the tilings to {file}: {error.strerror}; set PSYNTH_CACHE to a folder that can be written"
        ) from None
