"""Damaged data: rows in every format, a data card, examples, and the folder of an evaluation."""

from __future__ import annotations

from random import Random

import pytest

from psynth_jax.data.sources.rows import read_rows
from psynth_jax.evaluation.rows import RowFile
from tests.fuzz.files import write_rows
from tests.fuzz.harness import Command, Kind, Place, Said, Use, called, fuzz
from tests.fuzz.mutations import Mutated, damage_bytes, damage_json, damage_json_lines, damage_tokens, damage_yaml

pytestmark = pytest.mark.filterwarnings("default")


def _prepare(source: str, given: str) -> Use:
    def use(place: Place, command: Command) -> Said:
        return command("data", "prepare", source, given, "--records", place.out / "made.jsonl", "--json")

    return use


def _examples(place: Place, command: Command) -> Said:
    """Tokenise, too."""
    return command("data", "prepare", "records", "rows.jsonl", "--into", place.out / "made", "--model", "tiny-random")


def _rows(given: str) -> Use:
    return lambda place, command: called(lambda: [*read_rows(given)])


def _show(place: Place, command: Command) -> Said:
    described = command("data", "info", "prepared/synthetic_join", "--json")
    return described if described.code else command("data", "show", "prepared/synthetic_join", "--model", "hf", "--json")


def _evaluation(place: Place, command: Command) -> Said:
    return called(lambda: RowFile("evaluated", {"data": "a", "model": "b", "tasks": ["c"]}))


_EXAMPLES = "prepared/synthetic_join/"
KINDS = [
    Kind("rows.jsonl", ("rows.jsonl",), damage_json_lines, _prepare("records", "rows.jsonl")),
    Kind("rows to examples", ("rows.jsonl",), damage_json_lines, _examples),
    Kind("rows.json", ("rows.json",), damage_json, _prepare("records", "rows.json")),
    Kind("rows.jsonl.gz", ("rows.jsonl.gz",), damage_bytes, _prepare("records", "rows.jsonl.gz")),
    Kind("rows.parquet", ("rows.parquet",), damage_bytes, _rows("rows.parquet")),
    Kind("rows.tsv", ("rows.tsv",), damage_tokens, _prepare("flan", "rows.tsv")),
    Kind("rows.tsv, bytes", ("rows.tsv",), damage_bytes, _prepare("flan", "rows.tsv")),
    Kind("data card", ("set/README.md",), damage_tokens, _rows("set")),
    Kind("task.json", (_EXAMPLES + "task.json",), damage_json, _show),
    Kind("examples", (_EXAMPLES + "examples.array_record",), damage_bytes, _show),
    Kind("lengths", (_EXAMPLES + "lengths.npy",), damage_bytes, _show),
    Kind("settings of an evaluation", ("evaluated/settings.json",), damage_json, _evaluation, "evaluated"),
    Kind("rows of an evaluation", ("evaluated/rows.jsonl",), damage_json_lines, _evaluation, "evaluated"),
]


@pytest.fixture(scope="module", autouse=True)
def _more_data(place: Place) -> None:
    write_rows(place.tree)
    folder = place.tree / "evaluated"
    rows = RowFile(folder, {"data": "a", "model": "b", "tasks": ["c"]})
    with rows.open():
        for number in range(4):
            row = {"method": "branches", "task": "t", "id": str(number), "prediction": "Paris", "f1": 1.0, "em": 0.0}
            row |= {"ttft_s": 0.5, "prompt_tokens": 9, "cached_tokens": 20, "generated_tokens": 4}
            rows.append(row | {"finish_reason": "stop"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged(kind: Kind, place: Place, command: Command) -> None:
    fuzz(kind, place, command)


def test_card_by_its_values(place: Place, command: Command) -> None:
    """The card's front matter, as YAML in the flow style."""

    def damage(content: bytes, random: Random) -> Mutated:
        front = content.split(b"---\n")[1]
        damaged, said = damage_yaml(front, random)
        return b"---\n" + damaged + b"\n---\n", said

    fuzz(Kind("data card, values", ("set/README.md",), damage, _rows("set")), place, command)
