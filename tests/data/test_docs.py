"""What docs/data.md shows: the record, its keys, and the file of roles are what the code reads."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from psynth_jax.data.record import Record
from psynth_jax.data.sources import SOURCES
from psynth_jax.data.sources.layout import SUFFIXES
from psynth_jax.prompts import load_roles

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_record() -> None:
    (shown,) = re.findall(r'^    (\{"id": "5a7a".*?"meta": .*?\}\})$', PAGE, re.DOTALL | re.MULTILINE)
    record = Record.from_json(json.loads(shown.replace(", ...]", "]")))
    assert record.branches[0].prefix and record.answers and record.meta


def test_every_key_of_a_record_is_told() -> None:
    told = set(re.findall(r"^\| ([a-z]+) \| ", PAGE.split("## 2.")[0], re.MULTILINE)) - {"key"}
    assert told == {field.name for field in dataclasses.fields(Record)}


def test_every_source_and_ending_is_told() -> None:
    assert all(f"| {name} |" in PAGE for name in SOURCES)
    assert all(f"{ending}" in PAGE for ending in SUFFIXES if not ending.endswith(".gz"))


def test_the_file_of_roles(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "roles.yaml").write_text(shown)
    assert [role.name for role in load_roles(tmp_path / "roles.yaml")] == ["solver", "critic"]
