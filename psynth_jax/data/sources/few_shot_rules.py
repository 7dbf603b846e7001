"""Rules that cut a few-shot prompt of FLAN into examples.  A table of markers, and the scanners that use it.

    Question: ...        a question marker opens a question
    Answer: ...          an answer marker opens an answer
    ***                  separator lines stand between blocks; without any, blank lines do

VERSION changes when a rule does: the same rows then give other records.
"""

from __future__ import annotations

import dataclasses
import re

VERSION = 1

_SEPARATOR = re.compile(r"^[ \t]*(?:\*{2,}|-{2,}|_{2,})[ \t]*$", re.MULTILINE)
_BLANK = re.compile(r"\n[ \t]*\n")
_ANSWERS = (
    r"(?:the |final |short |correct )?answers?(?: and (?:explanation|rationale))?|a|ans|explanation|rationale|reasoning|"
    r"chain[- ]of[- ]thought|cot|step[- ]by[- ]step reasoning|solution|output|response|me|student|teacher"
)
_QUESTIONS = r"(?:the |new )?questions?|q|ques|query|problem|input|ask|user|math problem|question and options"
_ANSWER = re.compile(rf"^[ \t]*(?:(?:{_ANSWERS})[ \t]*:[ \t]*|>CoT<[ \t]*:?[ \t]*|\[answer\][ \t]*:?[ \t]*)", re.I | re.M)
_QUESTION = re.compile(rf"^[ \t]*(?:(?:{_QUESTIONS})(?:[ \t]*\d+)?[ \t]*:[ \t]*|\[question\][ \t]*:?[ \t]*)", re.I | re.M)
_OPTIONS = re.compile(r"^[ \t]*(?:options|possible answers|choices|choose from|pick)\b.*:[ \t]*$", re.I | re.M)
_CHOICE = re.compile(r"[ \t]*(?:[-*•]|\(?[A-Za-z0-9]{1,2}[).])[ \t]")


def blocks(prompt: str) -> list[str]:
    """Cut a prompt at its separator lines, or else at its blank lines; an answer that was cut off its question goes back."""
    parts = [part.strip() for part in _SEPARATOR.split(prompt)]
    if len(parts) == 1:
        parts = [part.strip() for part in _BLANK.split(prompt)]
    glued: list[str] = []
    for part in filter(None, parts):
        if glued and _ANSWER.match(part) and is_question(glued[-1]):
            glued[-1] += f"\n{part}"
        else:
            glued.append(part)
    return glued


def is_question(block: str) -> bool:
    """Tell whether a block asks and does not answer."""
    asks = bool(_QUESTION.match(block) or _OPTIONS.search(block)) or block.rstrip().endswith("?")
    return asks and not any(kind == "answer" and content for kind, content in _segments(block))


def bare_question(block: str) -> str:
    """Take a question's marker off its front, and from its end the markers of an answer that is still to come."""
    lines = block.strip().split("\n")
    while lines and (not lines[-1].strip() or _ANSWER.fullmatch(lines[-1])):
        lines.pop()
    question = "\n".join(lines)
    marker = _QUESTION.match(question)
    return question[marker.end() if marker else 0 :].strip()


def has_content(block: str) -> bool:
    """Tell whether anything is left of a block without its markers."""
    return bool(_ANSWER.sub("", _QUESTION.sub("", block)).strip())


def is_short(answer: str) -> bool:
    """Tell whether a text can be a final answer: one line of at most 80 characters and 12 words that does not ask."""
    one_line = "\n" not in answer and 0 < len(answer) <= 80 and len(answer.split()) <= 12
    return one_line and "?" not in answer and not answer.endswith(":")


def split_answer(target: str) -> tuple[str, str]:
    """Cut a text into question and answer: at the first answer marker, or before a short last line behind options."""
    marker = _ANSWER.search(target)
    if marker:
        return target[: marker.start()].strip(), target[marker.end() :].strip()
    lines = target.strip().split("\n")
    if len(lines) > 1 and _OPTIONS.search(target) and is_short(lines[-1].strip()) and not _CHOICE.match(lines[-1]):
        return "\n".join(lines[:-1]).strip(), lines[-1].strip()
    return target.strip(), ""


@dataclasses.dataclass(frozen=True)
class Inverted:
    """What an inverse prompt holds: pairs of question and answer, and the answer whose question is asked for."""

    pairs: tuple[tuple[str, str], ...]
    pending: str


def read_inverted(prompt: str) -> Inverted:
    """Read a prompt in which each answer stands before its question, by its markers or, where they fail, by its blocks."""
    by_markers = _pairs(_segments(prompt))
    if len(by_markers.pairs) >= 2:
        return by_markers
    by_blocks = _pairs([("question" if is_question(block) else "answer", block) for block in blocks(prompt)])
    return by_blocks if len(by_blocks.pairs) >= 2 else by_markers


def _segments(prompt: str) -> list[tuple[str, str]]:
    """Return what each marker opens, "question" or "answer", with what stands behind it up to the next one."""
    marks = [(match.start(), match.end(), "answer") for match in _ANSWER.finditer(prompt)]
    marks = sorted([*marks, *((match.start(), match.end(), "question") for match in _QUESTION.finditer(prompt))])
    ends = [start for start, _, _ in marks[1:]] + [len(prompt)]
    spans = zip(marks, ends, strict=False)  # no mark, no span
    return [(kind, _SEPARATOR.sub("", prompt[begin:end]).strip()) for (_, begin, kind), end in spans]


def _pairs(segments: list[tuple[str, str]]) -> Inverted:
    pairs: list[tuple[str, str]] = []
    waiting: list[str] = []
    for kind, content in segments:
        if kind == "answer":
            waiting += [content] if content else []
        elif waiting and content:
            pairs.append((content, merge_answers(*waiting)))
            waiting = []
    return Inverted(tuple(pairs), merge_answers(*waiting))


def merge_answers(*parts: str) -> str:
    """Join parts of an answer, each once; the shortest one comes last if it can be a final answer."""
    unique = list(dict.fromkeys(filter(None, parts)))
    final = min(unique, key=len, default="")
    if is_short(final):
        unique.remove(final)
        unique.append(final)
    return "\n".join(unique)
