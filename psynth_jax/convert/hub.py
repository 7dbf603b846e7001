"""The Hugging Face hub: what a repository's name looks like, and files of one, downloaded or uploaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psynth_jax.directories import replacing
from psynth_jax.errors import InputError
from psynth_jax.foreign import first_line, is_raised_by

_WORTH_PUSHING = ("psynth_adapter.json", "adapter_config.json", "cache_mapper.pt", "config.json")
# What a model or an adapter is made of; `*` goes through folders.  No pickle but the published mapper's, and no code.
_PULLED = [
    *(
        "*.json",
        "*.safetensors",
        "*.jinja",
        "*.md",
        "*.txt",
        "*.model",
        "*.spm",
        "*.tiktoken",
        "*.gguf",
        "LICENSE*",
        "NOTICE*",
    ),
    *("cache_mapper.pt", "*/cache_mapper.pt", "parameters/*"),
]
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

    try:
        with _asked(hub_id):
            return list(huggingface_hub.list_repo_files(hub_id))
    except InputError:  # without a network, what has been downloaded before
        try:
            known = Path(huggingface_hub.snapshot_download(hub_id, local_files_only=True))
        except Exception as error:  # its client raises errors of five libraries; ours go on
            if not is_raised_by("huggingface_hub", error):
                raise
            known = None
        if known is None:
            raise
        return [path.relative_to(known).as_posix() for path in known.rglob("*") if path.is_file()]


def push(directory: str | Path, hub_id: str, private: bool = False, message: str | None = None) -> str:
    """Upload a model or adapter as one commit, making the repository if it is not there; return the commit's address.

    Files of the repository that the directory does not have stay.  The token is the one of `hf auth login`, or HF_TOKEN.

    Raises:
      InputError: neither a model nor an adapter, no hub id, or the hub refuses; the message has its reason.
    """
    import huggingface_hub

    source = Path(directory)
    if not any((source / name).is_file() for name in _WORTH_PUSHING) and not (source / "judger_lora").is_dir():
        raise InputError(f"{source} is neither a model nor an adapter: it has none of {', '.join(_WORTH_PUSHING)}")
    if not is_hub_id(hub_id):
        raise InputError(f"{hub_id!r} is no name of a repository: it must be owner/name")
    with _asked(hub_id, "does not take"):
        huggingface_hub.create_repo(hub_id, private=private, exist_ok=True)
        said = message or f"Upload {source.name} with psynth_jax"
        made = huggingface_hub.upload_folder(repo_id=hub_id, folder_path=source, commit_message=said)
    return str(made.commit_url)


def pull(hub_id: str, target: str | Path, revision: str | None = None) -> None:
    """Download a repository's model or adapter into a new directory, whole or not at all.

    Pickles are left out, but for the published mapper's file.  Raises `InputError` for a directory that holds something, no
    hub id, or when the hub does not give it.
    """
    import huggingface_hub

    if not is_hub_id(hub_id):
        raise InputError(f"{hub_id!r} is no name of a repository: it must be owner/name")
    place = Path(target).expanduser()
    with replacing(place, (), "an empty directory") as fresh:
        with _asked(hub_id):
            huggingface_hub.snapshot_download(hub_id, revision=revision, local_dir=fresh, allow_patterns=_PULLED)
        shutil.rmtree(fresh / ".cache", ignore_errors=True)  # the client's notes on what it has downloaded
        if not any(fresh.iterdir()):
            raise InputError(f"{hub_id!r} has no files that are read here")


@contextmanager
def _asked(hub_id: str, verb: str = "does not give") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its client raises errors of five libraries; ours go on
        if not is_raised_by("huggingface_hub", error):
            raise
        here = " is no directory here, and" if verb == "does not give" else ":"
        raise InputError(f"{hub_id!r}{here} the Hugging Face hub {verb} it: {first_line(error)}") from None
