"""The tokenizer of a Hugging Face directory: its files are checked, then transformers reads them.

transformers takes values as they are, and imports whatever class a file names.  So what a file can choose is checked first;
what goes wrong afterwards is one line that names the file.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import CheckpointError, shown
from psynth_jax.files import read_text, refuse_special
from psynth_jax.foreign import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MARKS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_SETTINGS = "tokenizer_config.json"
# Any other class of transformers, such as one of models, would run with the files of the directory too.
_CLASS = re.compile(r"\w*(Tokenizer|TokenizerFast|Backend)")
_ALSO = ("AutoTokenizer",)  # it would look up itself for ever
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


# transformers resolves its names when they are first used, which is not safe in several threads at once.
_resolving = threading.Lock()


def tokenizer_class(name: str) -> Any:
    """Return a class of transformers, which is imported when it is first needed: that takes a second."""
    with _resolving:
        import transformers

        return getattr(transformers, name)


def has_tokenizer(directory: str | Path) -> bool:
    """Whether a directory has files of a tokenizer."""
    return any((Path(directory) / name).is_file() for name in _MARKS)


def load_backend(directory: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a directory.  No code of the directory is run.

    Raises `CheckpointError`, naming the file, for files that are damaged or name another class than a tokenizer.
    """
    folder = Path(directory)
    for file in folder.iterdir():
        refuse_special(file, CheckpointError)
    _check_class(folder / "config.json", _read_object(folder / "config.json"))
    settings = _read_object(folder / _SETTINGS)
    _check_class(folder / _SETTINGS, settings)
    _check_settings(folder / _SETTINGS, settings)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        _read_object(folder / name)
    auto = tokenizer_class("AutoTokenizer")
    try:
        # It resolves the classes that the files name.
        with _resolving, reading(f"the tokenizer in {folder}", "transformers"):
            return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except CheckpointError:
        _read_alone(folder / "tokenizer.json")
        raise


def _read_alone(file: Path) -> None:
    """Raise `CheckpointError` if it is this file that cannot be read."""
    from tokenizers import Tokenizer

    if file.is_file():
        with reading(file, "tokenizers"):
            Tokenizer.from_file(str(file))


def _read_object(file: Path) -> Mapping[str, Any]:
    """Return a JSON object; an empty one where there is no file."""
    if not file.is_file():
        return {}
    text = read_text(file, CheckpointError)
    with reading(file, "json"):
        value = json.loads(text)
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not a {type(value).__name__}")
    return value


def _check_class(file: Path, settings: Mapping[str, Any]) -> None:
    name = settings.get("tokenizer_class")
    if name is None:
        return
    if not isinstance(name, str) or not _CLASS.fullmatch(name) or name in _ALSO:
        raise CheckpointError(f"{file}: tokenizer_class must name a tokenizer of transformers, not {shown(name)}")


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    for name in _SPECIAL:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str | None) or (isinstance(value, dict) and text is None):
            raise CheckpointError(f"{file}: {name} must be a text, not {shown(value)}")
    template = settings.get("chat_template")
    if not isinstance(template, str | list | dict | None):
        raise CheckpointError(f"{file}: chat_template must be a text, not {shown(template)}")
