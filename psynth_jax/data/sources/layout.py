"""Which files of a data set hold which split: by its card, or by the names of the files.

    README.md   configs: [{config_name: SFT, data_files: [{split: train, path: SFT/train-*}]}]        the card's word
    names       train.parquet  data/train-00000-of-00002.parquet  distractor/validation-*.parquet    else the names'

The same for a directory here and for a listing of the hub.  Reads the card, and no data.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from psynth_jax.errors import DataError
from psynth_jax.files import read_text
from psynth_jax.foreign import reading

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".tsv", ".tsv.gz", ".csv", ".csv.gz")

# What data sets call their splits; the first name of a row is the one that this library shows.
_SPLIT_NAMES = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing"), ("eval", "evaluation"))
_NOT_DATA = re.compile(r"(^|/)[._]|(^|/)dataset_infos?\.json$")


def choose_files(names: Sequence[str], card: Path | None, shown: str, config: str | None, split: str) -> list[str]:
    """Return the files of a split, in order.

    Args:
      names: all files, by their paths inside the data set.
      card: its README.md; None when it has none.
      shown: what the data set is called in messages.
      config: None is the only configuration, or the default one.
      split: "train", or any name that the card or the files use.

    Raises:
      DataError: it has no file that can be read, no such config, or no such split; the message says what it has.
    """
    data = sorted(name for name in names if name.endswith(SUFFIXES) and not _NOT_DATA.search(name))
    if not data:
        raise DataError(f"{shown} has no file that can be read (endings: {', '.join(SUFFIXES)})")
    splits = _by_card(data, card, shown, config)
    if splits is None:
        splits = _by_name(data, shown, config, split)
    for name in _synonyms(split):
        if splits.get(name):
            return splits[name]
    has = ", ".join(sorted(name for name, files in splits.items() if files)) or "no files"
    raise DataError(f"{shown} has no split {split!r}{f' in its config {config!r}' if config else ''}; it has {has}")


def _synonyms(split: str) -> tuple[str, ...]:
    row = next((row for row in _SPLIT_NAMES if split in row), ())
    return (split, *(name for name in row if name != split))


def _by_card(data: Sequence[str], card: Path | None, shown: str, config: str | None) -> dict[str, list[str]] | None:
    """Return the files of each split as the card gives them; None when it gives none for this config."""
    entries = _card_configs(card, shown)
    if not entries:
        return None
    names = [_word(entry.get("config_name", "default"), shown) for entry in entries]
    if config is None:
        default = [entry for entry in entries if entry.get("default")]
        chosen = default or [entry for entry, name in zip(entries, names, strict=True) if name == "default"] or entries
        if len(chosen) > 1:
            raise DataError(f"{shown} has several configs; name one of {', '.join(names)}")
        entry = chosen[0]
    elif config in names:
        entry = entries[names.index(config)]
    else:
        raise DataError(f"{shown} has no config {config!r}; it has {', '.join(names)}")
    files = entry.get("data_files")
    if files is None:
        return None
    listed = files if isinstance(files, list) and all(isinstance(file, Mapping) for file in files) else [{"path": files}]
    splits: dict[str, list[str]] = {}
    for file in listed:
        paths = file.get("path")
        patterns = [_word(path, shown) for path in (paths if isinstance(paths, list) else [paths])]
        found = [name for name in data if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        splits.setdefault(_word(file.get("split", "train"), shown), []).extend(found)
    return splits


def _word(value: object, shown: str) -> str:
    """Return a name or a path of a data card.

    Raises `DataError` for anything else: YAML can hold lists of aliases of lists, which are endless as a text.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(
            f"{shown}: its data card must name configs, splits and paths by texts, not by a {type(value).__name__}"
        )
    return str(value)


def _card_configs(card: Path | None, shown: str) -> list[Mapping[str, Any]]:
    import yaml

    if card is None:
        return []
    named = f"the data card (README.md) of {shown}"
    text = read_text(card, DataError).removeprefix("\ufeff")
    front = re.match(r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    with reading(named, "yaml", DataError):
        meta = yaml.safe_load(front[1]) if front else None
    configs = meta.get("configs") if isinstance(meta, Mapping) else None
    return [entry for entry in configs if isinstance(entry, Mapping)] if isinstance(configs, list) else []


def _by_name(data: Sequence[str], shown: str, config: str | None, split: str) -> dict[str, list[str]]:
    """Sort files by the splits that their names tell of; a config is a folder on the way."""
    if config is not None:
        inside = [name for name in data if config in PurePosixPath(name).parts[:-1]]
        if not inside:
            raise DataError(f"{shown} has no config {config!r}: no folder with files is called so")
        data = inside
    splits: dict[str, list[str]] = {}
    for name in data:
        splits.setdefault(_split_of(name, split), []).append(name)
    unnamed = splits.pop("", [])
    # Files that tell of no split are for training, unless others are: then nobody knows what they are.
    return splits or {"train": unnamed}


def _split_of(name: str, asked: str) -> str:
    """Return the split that a name tells of, "" for none; `asked` is recognised whatever it is called."""
    path = PurePosixPath(name)
    for part in reversed(path.parts):
        if shard := re.match(r"([\w.]+?)-\d{5}-of-\d{5}", part):
            return shard[1]
        if re.search(rf"(?<![a-z0-9]){re.escape(asked.lower())}(?![a-z0-9])", part.lower()):
            return asked
        words = re.split(r"[^a-z0-9]+", part.lower())
        for row in _SPLIT_NAMES:
            if any(word in words for word in row):
                return row[0]
    return ""
