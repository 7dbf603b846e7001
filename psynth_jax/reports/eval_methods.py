"""The methods of an evaluation as a reader meets them: order, group, a few words on each.

    Methods     text, text-lora, branches, gated, and every method that is not known here
    Controls    question, wrong-branches, identity, vote, best-worker, self

Controls say what a high score is made of; they are no ways to answer that anybody would choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TEXT, BRANCHES = "text", "branches"

NOTES: Mapping[str, str] = {
    TEXT: "reads the workers' texts; base model",
    "text-lora": "reads the workers' texts; LoRA trained on texts",
    BRANCHES: "reads the workers' KV caches; adapter",
    "gated": "reads the caches; asks text where a gate doubts",
    "question": "reads no branch: what can be guessed",
    "wrong-branches": "reads the branches of another question",
    "identity": "reads the branches without an adapter",
    "vote": "the workers' most frequent answer; no synthesizer",
    "best-worker": "a right answer among the workers', if there is one",
    "self": "reads samples of its own: a second look",
}
CONTROLS = ("question", "wrong-branches", "identity", "vote", "best-worker", "self")


def note_of(name: str) -> str:
    """Return a few words on a method, "" for one that is not known."""
    count = name.removeprefix("recompute:")
    if count != name:
        return f"reads the caches, their first {count} tokens computed again"
    return NOTES.get(name, "")


def ordered(names: Iterable[str]) -> list[str]:
    """Return names as a reader expects them: known methods, unknown ones as they come, controls."""
    given = list(names)
    known = [name for name in (TEXT, "text-lora", BRANCHES, "gated") if name in given]
    controls = [name for name in CONTROLS if name in given]
    others = [name for name in given if name not in NOTES]
    return known + others + controls


def main_score(names: Iterable[str]) -> str | None:
    """Return the score that figures show: accuracy, else F1, else the first, else None."""
    return _first_of(("accuracy", "f1"), names)


def right_score(names: Iterable[str]) -> str | None:
    """Return the score that says whether an answer is right: accuracy, else EM, else the first."""
    return _first_of(("accuracy", "em"), names)


def _first_of(wanted: Iterable[str], names: Iterable[str]) -> str | None:
    given = list(names)
    for name in wanted:
        if name in given:
            return name
    return given[0] if given else None


def score_label(name: str) -> str:
    """Return a score's name for people: "EM", "F1", "Accuracy, published"."""
    if len(name) <= 2:
        return name.upper()
    stem, _, rest = name.partition("_")
    words = rest.replace("_", " ")
    return f"{stem.capitalize()}, {words}" if words else stem.capitalize()
