"""The Hugging Face hub: what a repository's name looks like, and files of one, downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psynth_jax.errors import InputError

_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a text can be "owner/name"."""
    return _ID.fullmatch(name) is not None and not name.startswith(".")


def download(hub_id: str, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    """Download the files of a repository that match the patterns; return their directory.

    Raises `InputError`, with the reason, when the hub does not give them.
    """
    import huggingface_hub

    with _asked(hub_id):
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(wanted), ignore_patterns=list(unwanted)))


def list_files(hub_id: str) -> list[str]:
    """List the files of a repository.  Raises `InputError`, with the reason, when the hub does not give it."""
    import huggingface_hub

    with _asked(hub_id):
        return list(huggingface_hub.list_repo_files(hub_id))


@contextmanager
def _asked(hub_id: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{hub_id!r} is no directory here, and the Hugging Face hub does not give it: {reason}") from None
