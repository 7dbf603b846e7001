"""Compiled programs that outlive a process: JAX's compilation cache, in this library's folder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from psynth_jax.errors import InputError, shown
from psynth_jax.storage.client import check_installed
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.storage.staging import cache_folder

_LEAST_SECONDS = 0.1  # a program that compiles faster than this is not worth a file
_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
_log = logging.getLogger(__name__)


def keep_compiled_programs(folder: str | AnyPath | None = None) -> AnyPath | None:
    """Keep what is compiled from now on in a folder, and read it from there.

    The next process compiles nothing again.  The command line calls this by itself.  It is a
    setting of JAX, so it holds for all programs of the process; where JAX was told of a folder in
    another way (JAX_COMPILATION_CACHE_DIR), that one is used without this call.

    Args:
      folder: made if it is not there; it may be in a bucket (gs://...).  None: `compiled` in
        $PSYNTH_CACHE, or in ~/.cache/psynth_jax.

    Returns the folder; None when none was given and the default one cannot be written: programs
    are then compiled again.

    Raises:
      InputError: the folder that was given cannot be made or written.
    """
    if folder is not None and not isinstance(folder, str | Path | BucketPath):
        raise InputError(f"folder is {shown(folder)}; it must be a text, a path or None")
    try:
        place = cache_folder() / "compiled" if folder is None else as_path(folder).expanduser()
        reason = _unusable(place)
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: there is no home; ValueError: the name has a zero byte.
        reason = getattr(error, "strerror", None) or str(error)
    if reason and folder is not None:
        raise InputError(f"cannot keep compiled programs in {shown(str(folder))}: {reason}")
    if reason:
        _log.info("compiled programs are not kept: %s", reason)
        return None
    for name, value in zip(_SETTINGS, (str(place), _LEAST_SECONDS), strict=True):
        jax.config.update(name, value)
    # At its first compilation JAX decides once and for all whether there is a folder; this makes
    # it look again.
    compilation_cache.reset_cache()
    return place


@contextlib.contextmanager
def programs_kept_in(folder: str | AnyPath) -> Iterator[None]:
    """Keep what a block compiles in a folder; after it JAX's settings are what they were."""
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    keep_compiled_programs(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _unusable(place: AnyPath) -> str:
    """Make a folder; say why it cannot be used, or nothing."""
    if isinstance(place, BucketPath):
        check_installed()
        return ""  # JAX warns of what it cannot write, and goes on
    place.mkdir(parents=True, exist_ok=True)
    return "" if os.access(place, os.W_OK) else "it is not writable"
