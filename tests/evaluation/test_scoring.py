"""EM and F1 by hand: what is normalised away, what counts as a token, and the rule for yes and no."""

from __future__ import annotations

import unicodedata

import pytest

from psynth_jax.evaluation.scoring import answer_tokens, exact_match, normalise, token_f1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel  Tower.", "eiffel tower"),
        ("  an apple, a pear\nand THE rest!", "apple pear and rest"),
        ("theatre", "theatre"),  # begins with an article, is none
        ("U.S.A.", "usa"),
        ("$1,000", "1000"),
        ("«Élan» – déjà vu…", "élan déjà vu"),
        ("Что? Где!", "что где"),
        ("東京、日本。", "東京日本"),
        ("The.", "the"),  # nothing else would be left
        ("?!", "?!"),
        (" ", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("Paris", ["paris."], 1, 1),
        ("in Paris", ["Paris"], 0, 2 / 3),  # precision 1/2, recall 1
        ("the city of Paris in France", ["Paris, France"], 0, 4 / 7),  # 2 of 5 said, 2 of 2 right
        ("Rome", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
        ("Rome", ["Paris", "Rome", "Rome Italy"], 1, 1),  # the best of the accepted
        ("New New York", ["New York New Jersey"], 0, 6 / 7),  # repeated tokens count as often as both have them
        ("yes", ["Yes"], 1, 1),
        ("yes, it is", ["yes"], 0, 0),  # tokens overlap, but yes is all or nothing
        ("no", ["no man's land"], 0, 0),
        ("noanswer", ["noanswer"], 1, 1),
        ("yes indeed", ["yes sir"], 0, 1 / 2),  # neither is just yes
        ("", ["The"], 0, 0),  # an answer that is an article is not the empty answer
        ("A.", ["A"], 1, 1),
    ],
)
def test_scores(prediction: str, answers: list[str], em: float, f1: float) -> None:
    assert exact_match(prediction, answers) == em
    assert token_f1(prediction, answers) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("prediction", "answer", "f1"),
    [
        ("Война мир", "война и мир", 4 / 5),  # Cyrillic has spaces
        ("北京市", "北京", 4 / 5),  # Chinese has none: two of three characters
        ("東京タワー", "東京", 4 / 7),
        ("กรุงเทพ", "กรุงเทพ", 1),
        ("박 지성", "박지성", 0),  # Korean has spaces, and they count
    ],
)
def test_scripts(prediction: str, answer: str, f1: float) -> None:
    assert token_f1(prediction, [answer]) == pytest.approx(f1)


def test_mixed_scripts_are_cut_where_they_meet() -> None:
    assert answer_tokens("The iPhone 在中国") == ["iphone", "在", "中", "国"]


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert exact_match(unicodedata.normalize("NFD", "Jürgen"), [unicodedata.normalize("NFC", "Jürgen")]) == 1


def test_no_answers_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="empty"):
        exact_match("Paris", [])
