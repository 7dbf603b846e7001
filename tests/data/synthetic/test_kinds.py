"""What holds of every kind beside the first six: determinism, splits, lengths, and no luck."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import re

import pytest

from psynth_jax.convert.load import open_model
from psynth_jax.data.example import lengths_of, tokenise
from psynth_jax.data.final_answer import FINAL_ANSWER, final_answer
from psynth_jax.data.record import Record
from psynth_jax.data.synthetic import (
    MORE_KINDS,
    SPLITS,
    Kind,
    Split,
    SyntheticOptions,
    synthetic_record,
    synthetic_records,
)
from psynth_jax.data.synthetic.merge import bare
from psynth_jax.data.synthetic.world import World, split_of, words
from psynth_jax.errors import ConfigError
from psynth_jax.evaluation.scoring import exact_match
from tests.slow import exhaustive_but

COUNT = 120  # of each kind and split
# Kinds whose meta has the sentences of each branch.
TOLD = ("long", "merge", "steps", "yesno", "quote")
SHOW_WORKING = ("judge", "steps", "code")
# How often the most frequent answer to a question of the same form may be right.
LUCK = {"yesno": 0.56, "long": 0.15, "code": 0.15}


@functools.cache
def records(kind: Kind, split: Split = "train") -> list[Record]:
    return list(synthetic_records([kind], COUNT, seed=3, split=split))


def form(query: str) -> str:
    """Take names and numbers out of a question."""
    return re.sub(r"[A-Z][a-z]+|\d+", "_", query)


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_same_arguments_same_record(kind: Kind) -> None:
    again = itertools.islice(synthetic_records([kind], COUNT, seed=3), 20)
    assert list(again) == records(kind)[:20]
    assert synthetic_record(kind, 7, seed=3) == records(kind)[7]
    assert synthetic_record(kind, 7, seed=4).query != records(kind)[7].query
    assert {record.task for record in records(kind)} == {f"synthetic_{kind}"}


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_records_have_a_json_form(kind: Kind) -> None:
    for record in records(kind)[:20]:
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def check_splits(train: list[Record], test: list[Record]) -> None:
    """No pair of question and answer is in both, and each question is where its hash puts it."""
    pairs = [{(record.query, record.answers) for record in made} for made in (train, test)]
    assert not pairs[0] & pairs[1]
    assert min(map(len, pairs)) > 0.95 * len(test)
    assert {split_of(record.query) for record in train} == {"train"}
    assert {split_of(record.query) for record in test} == {"test"}


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_no_question_is_in_two_splits(kind: Kind) -> None:
    check_splits(records(kind), records(kind, "test"))


@pytest.mark.parametrize("kind", exhaustive_but(MORE_KINDS, full=MORE_KINDS[:1]))
def test_no_question_of_thousands_is_in_two_splits(kind: Kind) -> None:
    train = list(synthetic_records([kind], 1000, seed=1))
    test = list(synthetic_records([kind], 1000, seed=1, split="test"))
    check_splits(train, test)


@pytest.fixture
def drawn_names(monkeypatch: pytest.MonkeyPatch) -> dict[Split, set[str]]:
    """The names that records of each split have drawn."""
    found: dict[Split, set[str]] = {split: set() for split in SPLITS}
    entity = World.entity

    def recorded(world: World, kind: str) -> str:
        name = entity(world, kind)
        found[world.split].add(name)
        return name

    monkeypatch.setattr(World, "entity", recorded)
    return found


def test_no_name_is_in_two_splits(drawn_names: dict[Split, set[str]]) -> None:
    first_names = {*words().name_parts["first"], *words().name_parts["suffix"]}
    texts: dict[Split, str] = {}
    for split in ("train", "test"):
        made = synthetic_records(MORE_KINDS, 30 * len(MORE_KINDS), seed=5, split=split)
        texts[split] = " ".join(json.dumps(record.to_json()) for record in made)
    assert min(len(drawn_names["train"]), len(drawn_names["test"])) > 1000
    for split, other in (("train", "test"), ("test", "train")):
        # Names are one or two capitalised words.
        single = re.findall(r"[A-Z][a-z]+", texts[other])
        written = {*single, *map(" ".join, itertools.pairwise(single))}
        names = {bare(name) for name in drawn_names[split]}
        coined = {name.split()[-1] if name.split()[0] in first_names else name for name in names}
        assert not coined & written


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_branches_have_their_lengths(kind: Kind) -> None:
    sizes = [len(branch.text.split()) for record in records(kind) for branch in record.branches]
    least, most = {"long": (250, 700), "judge": (10, 150), "code": (15, 150)}.get(kind, (20, 150))
    assert least <= min(sizes) and max(sizes) <= most
    assert max(sizes) > 1.5 * min(sizes)
    prefixed = [bool(branch.prefix) for record in records(kind) for branch in record.branches]
    assert 0.4 < sum(prefixed) / len(prefixed) < 0.6


@pytest.mark.parametrize("kind", TOLD)
def test_told_sentences_stand_in_the_branches(kind: Kind) -> None:
    for record in records(kind):
        for sentences, branch in zip(record.meta["told"], record.branches, strict=True):
            assert all(sentence in branch.text for sentence in sentences), record.id


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_targets_are_scored_as_right(kind: Kind) -> None:
    """The whole target is the answer, or ends in it in the one form that an evaluation reads."""
    for record in records(kind):
        assert exact_match(final_answer(record.target), record.answers) == 1.0
        assert (FINAL_ANSWER in record.target) == (kind in SHOW_WORKING)
        if kind in SHOW_WORKING:
            assert record.target.splitlines()[-1] == f"{FINAL_ANSWER} {record.answers[0]}"


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_no_question_names_a_place_of_a_branch(kind: Kind) -> None:
    """Branches have no order that a reader could see."""
    places = r"\b(first|second|third|last|next|above|below) (report|branch|note|worker|version)"
    assert not any(re.search(places, record.query) for record in records(kind))


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_the_question_alone_does_not_tell_the_answer(kind: Kind) -> None:
    """Answer each question of one half as most of its form were answered in the other half."""
    made = list(synthetic_records([kind], 400, seed=8))
    learned: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for record in made[::2]:
        learned[form(record.query)][record.answers[0]] += 1
        learned[""][record.answers[0]] += 1
    right = 0
    for record in made[1::2]:
        known = learned.get(form(record.query), learned[""])
        right += known.most_common(1)[0][0] == record.answers[0]
    assert right / 200 <= LUCK.get(kind, 0.06)
    if kind not in ("judge", "code"):
        for record in made:
            query = re.sub("[Yy]es or no", "", record.query)
            assert not re.search(rf"\b{re.escape(record.answers[0])}\b", query)


def test_yes_and_no_are_balanced() -> None:
    made = synthetic_records(["yesno"], 1000, seed=2)
    answers = collections.Counter(record.target for record in made)
    assert set(answers) == {"yes", "no"}
    assert 0.46 < answers["yes"] / 1000 < 0.54


@pytest.mark.weights
def test_examples_fit_the_demo_model() -> None:
    model = open_model("smollm2-135m")
    tokenizer = model.tokenizer
    assert tokenizer is not None and tokenizer.end_id is not None
    for kind in MORE_KINDS:
        for record in records(kind)[:6]:
            found = lengths_of(tokenise(record, tokenizer, tokenizer.end_id))
            assert found.prefilled + found.prompt + found.target <= 2048
            assert found.pasted + found.target <= model.config.max_positions
            assert found.target <= 256


def test_options_take_all_kinds() -> None:
    assert SyntheticOptions.parse({"kinds": "lookup,judge"}).kinds == ("lookup", "judge")
    assert "judge" not in SyntheticOptions().kinds
    with pytest.raises(ConfigError, match="kinds"):
        SyntheticOptions.parse({"kinds": "judges"})
