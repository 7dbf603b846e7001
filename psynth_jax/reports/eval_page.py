"""The page of evaluations: one HTML file with everything inside, safe against what models write.

    eval_page.html.j2    the form; every value is escaped that it does not call safe
    eval_page.css        looks, light and dark
    eval_page.js         the questions; makes elements and sets their texts, never HTML

The page forbids itself (Content-Security-Policy) the network, and every script and style but these
two, which it names by their hashes.
Tables and pictures need no script.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from psynth_jax.reports.eval_folder import Evaluation
from psynth_jax.reports.eval_questions import FILTERS, counts, question_data, script_json
from psynth_jax.reports.eval_tables import (
    by_task_table,
    comparison_table,
    costs_table,
    facts,
    flat,
    scores_table,
)
from psynth_jax.reports.plots import Picture


@dataclasses.dataclass(frozen=True)
class Section:
    """An evaluation as the page shows it: under a name, with its pictures."""

    name: str
    evaluation: Evaluation
    pictures: tuple[Picture, ...]


def page(
    sections: Sequence[Section],
    comparison: Picture | None,
    pictures: Mapping[str, bytes],
    longest: int | None,
) -> str:
    """Return the page.

    Args:
      sections: the evaluations, at least one.
      comparison: the picture of several side by side.
      pictures: the contents of all pictures by file name.
      longest: characters of each text that are kept; None keeps all.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["picture_source"] = lambda picture: _data_uri(pictures[picture.file])
    form = environment.from_string(_part("eval_page.html.j2"))
    style, script = _part("eval_page.css"), _part("eval_page.js")
    names = [section.name for section in sections]
    evaluations = [section.evaluation for section in sections]
    several = len(sections) > 1
    return form.render(
        title="Evaluations" if several else f"Evaluation {names[0]}",
        policy=_policy(style, script),
        style=style,
        script=script,
        sections=[_section(section, longest) for section in sections],
        several=several,
        comparison=comparison_table(evaluations, names) if several else None,
        comparison_picture=comparison,
        filters=FILTERS,
    )


def _section(section: Section, longest: int | None) -> dict[str, Any]:
    """Return what the form shows of an evaluation."""
    evaluation = section.evaluation
    questions = question_data(evaluation, longest)
    return {
        "name": section.name,
        "running": evaluation.running,
        "facts": list(facts(evaluation)),
        "scores": scores_table(evaluation),
        "costs": costs_table(evaluation),
        "by_task": by_task_table(evaluation),
        "batch": evaluation.batch,
        "pictures": section.pictures,
        "settings": list(flat(evaluation.settings)),
        "counts": counts(questions["questions"]),
        "data": script_json(questions),
    }


def _part(file: str) -> str:
    return resources.files("psynth_jax.reports").joinpath(file).read_text(encoding="utf-8")


def _data_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: this style, this script, inlined pictures, no more."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
