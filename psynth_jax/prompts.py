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

from psynth_jax.errors import InputError

Message: TypeAlias = Mapping[str, Any]

SYNTHESIS_TEXT = "Use the notes above to answer the question.\n\n{question}"
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
    else:
        try:
            content = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot read roles from {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"cannot read roles from {path}: it is not UTF-8 text") from None
    return parse_roles(content, path)


def parse_roles(content: str, path: object) -> tuple[Role, ...]:
    """Read roles from the text of a YAML file.  Raises `InputError` naming `path` and the entry that is wrong."""
    import yaml

    try:
        entries = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} must hold a list of roles, each with name and text")
    for number, entry in enumerate(entries):
        good = (
            isinstance(entry, dict)
            and set(entry) == {"name", "text"}
            and all(isinstance(v, str) and v.strip() for v in entry.values())
        )
        if not good:
            raise InputError(f"{path}: role {number + 1} must have a name and a text, and nothing else")
    return tuple(Role(entry["name"], entry["text"]) for entry in entries)


def worker_messages(question: str, role: Role) -> list[Message]:
    """Return what one worker is asked.  The role comes last: everything before it is shared by all workers."""
    return [{"role": "user", "content": f"Question: {question}\n\nYour part: {role.text}"}]


def worker_prompts(question: str, roles: Sequence[Role], workers: int) -> list[list[Message]]:
    """Return the messages of `workers` workers, one role each, starting over after the last role."""
    return [worker_messages(question, roles[index % len(roles)]) for index in range(workers)]


def synthesis_messages(question: str) -> list[Message]:
    """Return what the synthesizer is asked when it reads branches."""
    return [{"role": "user", "content": SYNTHESIS_TEXT.format(question=question)}]


def baseline_messages(question: str, texts: Sequence[str]) -> list[Message]:
    """Return the text baseline's messages: the same question behind the same texts, pasted."""
    notes = "\n\n".join(f"[Notes {number}]\n{text.strip()}" for number, text in enumerate(texts, start=1))
    return [{"role": "user", "content": TEXT_BASELINE_TEXT.format(notes=notes, question=question)}]


def question_messages(question: str) -> list[Message]:
    """Return the question alone."""
    return [{"role": "user", "content": question}]
