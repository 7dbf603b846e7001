"""The wording of prompts: what a worker is told, what the synthesizer is told, how texts are pasted for the baseline.

Plain chat messages; a tokenizer's chat template renders them.  All workers of a question share their messages up to the
role, so that the shared part is prefilled once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from psynth_jax.errors import InputError, shown
from psynth_jax.files import read_text
from psynth_jax.foreign import reading
from psynth_jax.unicode_text import checked_text

Message: TypeAlias = Mapping[str, Any]

SYNTHESIS_TEXT = "Use the notes above to answer the question.\n\n{question}"
NOTHING_WRITTEN = "(no text)"  # stands for a worker that wrote nothing, where texts are read
TEXT_BASELINE_TEXT = "{notes}\n\n" + SYNTHESIS_TEXT


@dataclasses.dataclass(frozen=True)
class Role:
    """name is shown to people; text is what the worker is told."""

    name: str
    text: str


def load_roles(path: str | Path | None = None) -> tuple[Role, ...]:
    """Read roles from a YAML file (a list of {name, text}); None reads the built-in ones.

    Raises `InputError` naming the file and the entry that is wrong.
    """
    if path is None:
        content = resources.files("psynth_jax").joinpath("roles.yaml").read_text(encoding="utf-8")
    elif isinstance(path, str | Path):
        content = read_text(path)
    else:
        raise InputError(f"roles are read from a file, named by a text or a path, not by {shown(path)}")
    return parse_roles(content, path)


def parse_roles(content: str, path: object) -> tuple[Role, ...]:
    """Read roles from the text of a YAML file.  Raises `InputError` naming `path` and the entry that is wrong."""
    import yaml

    with reading(str(path), "yaml", InputError):
        entries = yaml.safe_load(content)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} must hold a list of roles, each with name and text")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or set(entry) != {"name", "text"} or not all(map(_says_something, entry.values())):
            raise InputError(f"{path}: role {number} must have a name and a text, and nothing else")
        for field, value in entry.items():
            checked_text(value, f"{path}: the {field} of role {number}")
    return tuple(Role(entry["name"], entry["text"]) for entry in entries)


def _says_something(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def worker_messages(question: str, role: Role) -> list[Message]:
    """Return what one worker is asked.  The role comes last: everything before it is shared by all workers.

    Raises `InputError` for a question or a role that is no text.
    """
    question, text = checked_text(question, "the question"), _checked_role(role)
    return [{"role": "user", "content": f"Question: {question}\n\nYour part: {text}"}]


def worker_prompts(question: str, roles: Sequence[Role], workers: int) -> list[list[Message]]:
    """Return the messages of `workers` workers, one role each, starting over after the last role.

    Raises `InputError` for a question or a role that is no text, no roles, or a wrong number of workers.
    """
    _check_roles(roles, workers)
    return [worker_messages(question, roles[index % len(roles)]) for index in range(workers)]


def _checked_role(role: object) -> str:
    """Return what a worker is told."""
    if not isinstance(role, Role):
        raise InputError(f"a role must be a Role, as load_roles gives, not {shown(role)}")
    name = checked_text(role.name, "the name of a role")
    return checked_text(role.text, f"the text of the role {shown(name)}")


def _check_roles(roles: object, workers: object) -> None:
    if isinstance(roles, str) or not isinstance(roles, Sequence) or not roles:
        raise InputError(f"roles must be a list of at least one Role, as load_roles gives, not {shown(roles)}")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise InputError(f"workers is {shown(workers)}; it must be a whole number, 0 or more")


def synthesis_messages(question: str) -> list[Message]:
    """Return what the synthesizer is asked when it reads branches."""
    question = checked_text(question, "the question")
    return [{"role": "user", "content": SYNTHESIS_TEXT.format(question=question)}]


def baseline_messages(question: str, texts: Sequence[str]) -> list[Message]:
    """Return the text baseline's messages: the same question behind the same texts, pasted."""
    question = checked_text(question, "the question")
    checked = [checked_text(text, f"text {number}") for number, text in enumerate(texts, start=1)]
    notes = "\n\n".join(f"[Notes {number}]\n{text.strip()}" for number, text in enumerate(checked, start=1))
    return [{"role": "user", "content": TEXT_BASELINE_TEXT.format(notes=notes, question=question)}]


def read_as(text: str) -> str:
    """Return a worker's text as it is read; that of a worker which wrote nothing says so."""
    if text.strip():
        return text
    return NOTHING_WRITTEN


def question_messages(question: str) -> list[Message]:
    """Return the question alone."""
    return [{"role": "user", "content": checked_text(question, "the question")}]
