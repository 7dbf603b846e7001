"""Generated examples of a config: each entry is a task of its own, named after its kinds."""

from __future__ import annotations

from pathlib import Path

from psynth_jax.training.tasks import load_tasks
from tests.training.examples import config


def test_kinds_are_tasks_of_their_own(tmp_path: Path) -> None:
    tasks = (
        {"synthetic": 3},
        {"synthetic": 2, "kinds": ("judge", "steps")},
        {"synthetic": 2, "kinds": ("yesno",)},
    )
    data, _ = load_tasks(config(tmp_path, data=tasks))
    named = [source.task for _, source in data]
    assert named == ["synthetic", "synthetic_judge_steps", "synthetic_yesno"]
    second = [source[1].task for _, source in data]
    assert second == ["synthetic_join", "synthetic_steps", "synthetic_yesno"]
