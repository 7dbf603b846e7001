"""The report of evaluations: pictures, and one page that needs nothing else.

    DIR/report.html            the page: tables, pictures inside of it, every question
    DIR/report_accuracy.png    the same pictures
    DIR/report_2_time.png      those of the second folder, where the page is of several

Files are replaced one by one, each atomically.  Nothing else in the folder is touched.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psynth_jax.directories import followed, writing
from psynth_jax.errors import InputError
from psynth_jax.files import write_bytes
from psynth_jax.reports.eval_folder import Evaluation, read_evaluation
from psynth_jax.reports.eval_page import Section, page
from psynth_jax.reports.plots import NAMES, Picture, draw_comparison, draw_evaluation
from psynth_jax.storage.paths import is_bucket

PAGE, PREFIX = "report.html", "report_"
LONGEST_TEXT = 20_000  # characters of a text on the page, if nobody says otherwise
_OURS = re.compile(rf"{PREFIX}(\d+_)?({'|'.join(NAMES)})\.png")


def report_eval(
    folders: Sequence[str | Path],
    into: str | Path | None = None,
    limit_text: int | None = LONGEST_TEXT,
) -> dict[str, Any]:
    """Draw evaluations and write their page; a report that is there is replaced.

    Args:
      folders: of `psynth eval`, finished or not.
      into: folder for the page and its pictures, made if it is absent.  None is the folder of the
        evaluation, if only one is given.
      limit_text: characters of each text that the page keeps; None keeps all.

    Returns:
      "page" (its path), "pictures" (their paths), "evaluations" (name, task, count of questions,
      methods, and whether it still runs, of each).

    Raises:
      InputError: a folder is not one of an evaluation, or several are given and `into` is not.
      DataError: a file of a folder is damaged, or the report cannot be written.
    """
    target = _target(folders, into)
    if limit_text is not None and limit_text < 1:
        raise InputError(f"limit-text is {limit_text}; it must be at least 1")
    evaluations = [read_evaluation(folder) for folder in folders]
    with writing(target), tempfile.TemporaryDirectory(prefix="psynth-report-") as scratch:
        drawn = Path(scratch)
        sections, comparison = _draw(evaluations, drawn)
        pictures = [picture for section in sections for picture in section.pictures]
        if comparison is not None:
            pictures.insert(0, comparison)
        contents = {picture.file: (drawn / picture.file).read_bytes() for picture in pictures}
        text = page(sections, comparison, contents, limit_text)
        _write(target, contents, text)
    paths = [str(target / picture.file) for picture in pictures]
    described = [_described(evaluation) for evaluation in evaluations]
    return {"page": str(target / PAGE), "pictures": paths, "evaluations": described}


def _target(folders: Sequence[str | Path], into: str | Path | None) -> Path:
    if not folders:
        raise InputError("no folder is given; give those that psynth eval wrote into")
    if into is None and len(folders) > 1:
        raise InputError(f"{len(folders)} folders make one page; say where it goes with --into DIR")
    target = folders[0] if into is None else into
    if is_bucket(target):
        raise InputError(f"{target} is in a bucket; write the report to a disk and copy it")
    place = Path(target)
    if into is not None and followed(place).is_file():
        raise InputError(f"{into} is a file; --into names a folder")
    return place


def _draw(evaluations: Sequence[Evaluation], to: Path) -> tuple[list[Section], Picture | None]:
    """Draw all pictures.  Pictures and headings of several evaluations are numbered from 1."""
    several = len(evaluations) > 1
    sections = []
    for number, evaluation in enumerate(evaluations, start=1):
        prefix = f"{PREFIX}{number}_" if several else PREFIX
        name = f"{number}. {evaluation.name}" if several else evaluation.name
        sections.append(Section(name, evaluation, tuple(draw_evaluation(evaluation, to, prefix))))
    if not several:
        return sections, None
    names = [section.name for section in sections]
    return sections, draw_comparison(evaluations, names, to, PREFIX)


def _write(target: Path, pictures: dict[str, bytes], text: str) -> None:
    """Write pictures and page; remove pictures of an earlier report that are no longer drawn."""
    followed(target).mkdir(parents=True, exist_ok=True)
    for file, content in pictures.items():
        write_bytes(target / file, content)
    # A model may have written half of a surrogate pair, and a folder's name may be of any bytes.
    write_bytes(target / PAGE, text.encode("utf-8", "replace"))
    for path in target.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in pictures:
            path.unlink()


def _described(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "task": evaluation.task,
        "questions": len(evaluation.questions),
        "methods": [method.name for method in evaluation.methods],
        "running": evaluation.running,
    }
