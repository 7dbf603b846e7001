"""Synthetic questions: every answer follows from what the branches say, and from nothing else."""

from __future__ import annotations

import collections
import datetime
import hashlib
import itertools
import json
import re

import pytest

from psynth_jax.data.record import Record
from psynth_jax.data.synthetic import KINDS, SPLITS, Kind, Split, SyntheticOptions, synthetic_record, synthetic_records
from psynth_jax.data.synthetic.world import chance, split_of, words
from psynth_jax.errors import ConfigError, InputError

RECORDS = list(synthetic_records(count=60 * len(KINDS), seed=11))


def of_kind(kind: Kind) -> list[Record]:
    return [record for record in RECORDS if record.meta["kind"] == kind]


def names_in(record: Record) -> set[str]:
    """Find the coined parts of all names: what can be taken apart into the coined parts of some kind."""
    text = "\n".join([record.query, *(branch.prefix + branch.text for branch in record.branches)])
    pattern = "|".join("".join(f"(?:{'|'.join(part)})" for part in parts) for parts in words().coined.values())
    return set(re.findall(rf"\b(?:{pattern})\b", text))


def values(record: Record, subject: str, relation: str) -> list[str]:
    return [fact["value"] for fact in record.meta["facts"] if (fact["subject"], fact["relation"]) == (subject, relation)]


def the_one(found: list[str]) -> str:
    assert len(found) == 1
    return found[0]


def derive(record: Record) -> str:
    """Work the answer out again from the facts."""
    asked, facts = record.meta["asked"], record.meta["facts"]
    match record.meta["kind"]:
        case "lookup":
            return the_one(values(record, asked["subject"], asked["relation"]))
        case "join":
            return the_one(values(record, the_one(values(record, asked["subject"], asked["relation"])), asked["then"]))
        case "count":
            fitting = [fact for fact in facts if (fact["relation"], fact["value"]) == (asked["relation"], asked["value"])]
            if "subject" in asked:
                return str(len({fact["branch"] for fact in fitting if fact["subject"] == asked["subject"]}))
            return str(len({fact["subject"] for fact in fitting}))
        case "majority":
            (first, votes), (_, fewer) = collections.Counter(values(record, **asked)).most_common(2)
            assert votes > fewer
            return first
        case "arithmetic":
            numbers = [int(the_one(values(record, subject, asked["relation"]))) for subject in asked["subjects"]]
            return str(sum(numbers) if asked["operation"] == "sum" else numbers[0] - numbers[1])
        case "contradiction":
            differing = [
                fact for fact in facts if fact["subject"] == asked["subject"] and fact["relation"] == asked["relation"]
            ]
            assert len({fact["value"] for fact in differing}) == len(differing) >= 2
            if asked["by"] == "checked":
                return the_one([fact["value"] for fact in differing if said_to_be_checked(fact["text"])])
            return max(differing, key=lambda fact: date_in(fact["text"]))["value"]
    raise AssertionError(record.meta["kind"])


def said_to_be_checked(text: str) -> bool:
    verdicts = [text.endswith(sentence) for sentence in words().checked], [text.endswith(s) for s in words().unchecked]
    assert sum(map(any, verdicts)) == 1
    return any(verdicts[0])


def date_in(text: str) -> datetime.date:
    if iso := re.search(r"\d{4}-\d\d-\d\d", text):
        return datetime.date.fromisoformat(iso[0])
    months = "|".join(words().lists["month"])
    found = re.search(rf"(\d+) ({months}) (\d{{4}})", text) or re.search(rf"({months}) (\d+), (\d{{4}})", text)
    assert found
    day, month = sorted(found.groups()[:2])
    return datetime.date(int(found[3]), words().lists["month"].index(month) + 1, int(day))


@pytest.mark.parametrize("kind", KINDS)
def test_answer_follows_from_the_facts(kind: Kind) -> None:
    for record in of_kind(kind):
        assert derive(record) == record.target == the_one([*record.answers]), record.id


def test_branches_say_the_facts_word_for_word_and_nothing_else_of_what_is_asked() -> None:
    for record in RECORDS:
        rest = [branch.text for branch in record.branches]
        for fact in record.meta["facts"]:
            assert fact["text"] in rest[fact["branch"]], record.id
            assert fact["subject"].lower() in fact["text"].lower() and fact["value"].lower() in fact["text"].lower()
            rest[fact["branch"]] = rest[fact["branch"]].replace(fact["text"], "", 1)
        asked = record.meta["asked"]
        for subject in asked.get("subjects", [asked["subject"]] if "subject" in asked else []):
            assert subject not in "".join(rest) + "".join(branch.prefix for branch in record.branches)


def test_query_does_not_say_the_answer() -> None:
    for record in RECORDS:
        assert not re.search(rf"\b{re.escape(record.target)}\b", record.query, re.IGNORECASE), record.query


def test_facts_are_in_different_branches() -> None:
    for kind in ("join", "arithmetic", "majority", "contradiction"):
        for record in of_kind(kind):
            asked = record.meta["asked"]
            subjects = asked.get("subjects") or [asked["subject"]]
            if kind == "join":
                subjects.append(the_one(values(record, asked["subject"], asked["relation"])))
            used = {asked["relation"], asked.get("then")}
            told = [f["branch"] for f in record.meta["facts"] if f["subject"] in subjects and f["relation"] in used]
            assert len(set(told)) == len(told) >= 2


def test_others_have_values_too() -> None:
    """The kind of the answer alone does not point to it: lookup and join offer at least one other."""
    for kind, relation in (("lookup", "relation"), ("join", "then")):
        for record in of_kind(kind):
            offered = [f["value"] for f in record.meta["facts"] if f["relation"] == record.meta["asked"][relation]]
            assert len(offered) == len(set(offered)) >= 2


def test_branches_are_short_texts() -> None:
    counts = [len(record.branches) for record in RECORDS]
    sizes = [len(branch.text.split()) for record in RECORDS for branch in record.branches]
    assert set(counts) == set(range(2, 9))
    assert min(sizes) >= 20 and max(sizes) <= 150
    assert max(sizes) - min(sizes) > 80
    assert 0.4 < sum(bool(b.prefix) for r in RECORDS for b in r.branches) / len(sizes) < 0.6


def test_texts_vary() -> None:
    sentences = [fact["text"] for record in RECORDS for fact in record.meta["facts"]]
    assert len(set(sentences)) > 0.98 * len(sentences)
    assert len({record.query for record in RECORDS}) > 0.95 * len(RECORDS)  # a count of entities names none


def test_count_is_not_told_by_anything_but_its_branches() -> None:
    records = list(synthetic_records(["count"], 400, seed=2))
    answers = collections.Counter(record.target for record in records)
    assert set(answers) == set("12345") and max(answers.values()) < 0.28 * len(records)
    for form in (True, False):
        few, many = [], []
        for record in records:
            if ("subject" in record.meta["asked"]) is form:
                (many if len(record.branches) == 8 else few).append(int(record.target))
        assert abs(sum(few) / len(few) - sum(many) / len(many)) < 0.6  # the mean is 3; by chance alone 0.3


def test_chance_is_that_of_a_guess_by_the_question() -> None:
    for record in RECORDS:
        asked, kind = record.meta["asked"], record.meta["kind"]
        if kind == "count":
            assert record.meta["chance"] == 1 / 5
        else:
            relation = words().relations[asked.get("then", asked["relation"])]
            assert record.meta["chance"] == chance(relation) <= 1 / 12
            offered = words().lists.get(relation.value)
            assert offered is None or record.target in offered


def test_kinds_are_balanced_and_in_turn() -> None:
    assert {kind: len(of_kind(kind)) for kind in KINDS} == dict.fromkeys(KINDS, 60)
    assert [record.task for record in RECORDS[:7]] == [f"synthetic_{kind}" for kind in (*KINDS, KINDS[0])]
    assert len({record.id for record in RECORDS}) == len(RECORDS)


def test_same_arguments_same_records() -> None:
    assert list(itertools.islice(synthetic_records(count=50, seed=11), 20)) == RECORDS[:20]
    assert synthetic_record("join", 7, seed=11) == RECORDS[7]
    assert next(synthetic_records(count=1, seed=12)).query != RECORDS[0].query
    assert next(synthetic_records(count=1, seed=11, split="test")).query != RECORDS[0].query


# SHA-256 of the records of seeds 0 and 11, as they were before there were other kinds.
DIGESTS: dict[Split, str] = {
    "train": "295fe1d5172874a5e33ea087ae399f169e977bb3427638f39d598534fd6c3564",
    "validation": "d0d896a701bfda2551fbb0f236267839904f549ab954d69b98cc79d5b325175e",
    "test": "6223507beb86141f4e821a26bf86724b5b4ad62ffc672d6b3a213b8d8d37aad5",
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_kinds_stay_as_they_are(split: Split) -> None:
    digest = hashlib.sha256()
    for seed in (0, 11):
        for record in synthetic_records(count=120, seed=seed, split=split):
            digest.update(json.dumps(record.to_json(), sort_keys=True).encode() + b"\n")
    assert digest.hexdigest() == DIGESTS[split]


def test_splits_share_no_name() -> None:
    names = {split: set[str]() for split in SPLITS}
    for split in SPLITS:
        for record in synthetic_records(count=60, seed=11, split=split):
            names[split] |= names_in(record)
    assert all(split_of(name) == split for split in SPLITS for name in names[split])
    assert min(map(len, names.values())) > 500


def test_entities_of_each_split_are_many() -> None:
    for parts in words().coined.values():
        sizes = collections.Counter(split_of("".join(pieces)) for pieces in itertools.product(*parts))
        total = sum(sizes.values())
        assert total > 1500
        assert 0.07 < sizes["test"] / total < 0.13 and 0.07 < sizes["validation"] / total < 0.13


def test_records_have_a_json_form() -> None:
    assert Record.from_json(json.loads(json.dumps(RECORDS[0].to_json()))) == RECORDS[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kinds": ["lookup", "sort"]}, "no synthetic kind 'sort'; choose from lookup, join"),
        ({"kinds": []}, "no synthetic kind"),
        ({"split": "dev"}, "no split 'dev'; choose from train, validation, test"),
    ],
)
def test_unknown_names_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        synthetic_records(**arguments)  # type: ignore[arg-type]


def test_options_take_lists_as_a_command_line_has_them() -> None:
    assert SyntheticOptions.parse({"kinds": "join, count"}).kinds == ("join", "count")
    assert SyntheticOptions.parse({"kinds": ["join"]}).kinds == ("join",)
    for wrong in ("sort", "", 3):
        with pytest.raises(ConfigError, match="kinds"):
            SyntheticOptions.parse({"kinds": wrong})


def test_words_are_whole() -> None:
    """Every template has the slots that its use fills, and every list holds texts without repetitions."""
    found = words()
    for relation in found.relations.values():
        assert all("{s}" in fact and ("{v}" in fact or "{av}" in fact) for fact in relation.facts), relation.name
        assert all("{s}" in text and "{v}" not in text for text in (*relation.asks, *relation.phrase)), relation.name
        assert all("{a}" in text and "{b}" in text for text in (*relation.sums, *relation.differences)), relation.name
        assert bool(relation.counts) == bool(relation.claim) == (relation.value in found.lists), relation.name
        assert bool(relation.sums) == bool(relation.differences) == (relation.value == "number"), relation.name
        assert bool(relation.phrase) == (relation.value in found.names), relation.name
        assert len(relation.facts) >= 4 and len(relation.asks) >= 3, relation.name
    lists = [*found.lists.values(), *found.slots.values(), *itertools.chain(*found.coined.values()), found.fillers]
    for each in lists:
        assert len(set(each)) == len(each) and all(isinstance(item, str) for item in each)
