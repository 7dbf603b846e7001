"""Generated examples: the same ones however many processes make them."""

from __future__ import annotations

import pytest

from psynth_jax.convert.load import open_model
from psynth_jax.data.example import Example, tokenise
from psynth_jax.data.synthetic import examples as generating
from psynth_jax.data.synthetic import synthetic_records
from psynth_jax.data.synthetic.examples import Generated, synthetic_examples
from psynth_jax.errors import ConfigError
from psynth_jax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = open_model("tiny-random").tokenizer
    assert found is not None
    return found


def parts(example: Example) -> list[list[int]]:
    branches = [[*branch.prefix, *branch.kept] for branch in example.branches]
    arrays = (example.prompt, example.pasted, example.target)
    return [*(array.tolist() for array in arrays), *branches]


def same(first: list[Example], second: list[Example]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a.id == b.id and parts(a) == parts(b) for a, b in pairs)


def test_are_the_records_in_their_order(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "CHUNK", 4)
    kinds = ("lookup", "yesno", "steps")
    found = synthetic_examples(Generated(10, 3, "test", kinds), tokenizer)
    assert tokenizer.end_id is not None
    records = synthetic_records(kinds, 10, 3, "test")
    assert same(found, [tokenise(record, tokenizer, tokenizer.end_id) for record in records])


@pytest.mark.slow
def test_are_the_same_from_two_processes(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Generated(generating.CHUNK + 20, 0, "train")
    alone = synthetic_examples(wanted, tokenizer, processes=2)  # too few: made here
    monkeypatch.setattr(generating, "FEWEST", 1)
    assert same(synthetic_examples(wanted, tokenizer, processes=2), alone)


def test_a_tokenizer_without_an_end_token(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tokenizer), "end_id", None)
    with pytest.raises(ConfigError, match="no end token"):
        synthetic_examples(Generated(1, 0, "train"), tokenizer)
