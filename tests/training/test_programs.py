"""Steps compiled ahead: the same run, all programs at the start, and at once when a run is continued."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import psynth_jax as ps
from psynth_jax.data.example import ExampleList
from psynth_jax.errors import ConfigError, DataError
from psynth_jax.training import start as starting
from psynth_jax.training.config import TrainConfig
from psynth_jax.training.plan import Shape
from psynth_jax.training.programs import SHAPES, Key, KnownShapes, read_shapes, write_shapes
from psynth_jax.training.start import train
from psynth_jax.training.tasks import TaskData
from psynth_jax.training.trainer import Trainer
from tests.training.codes import codes, losses
from tests.training.examples import config

SHAPE = Shape(4, 8, 64, 16, 2, 16, 64, 16, 0, 0)


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return ps.load_model("tiny-random", layers="stacked")


def run(workdir: Path, **changed: object) -> TrainConfig:
    settings = {"data": ({"synthetic": 8},), "batch": {"tokens": 4096, "examples": 4, "shapes": 2}}
    return config(workdir, **settings | {"train": {"steps": 2}} | changed)


@pytest.mark.slow
def test_a_run_compiled_ahead_is_the_same(model: ps.Model, tmp_path: Path) -> None:
    source = codes(model)
    found = {}
    for ahead in (False, True):
        settings = config(tmp_path / str(ahead), train={"steps": 3}, compile_ahead=ahead)
        Trainer(settings, model, [TaskData(settings.data[0], source)]).run()
        found[ahead] = losses(tmp_path / str(ahead))
    assert found[True] == found[False]
    known = read_shapes(tmp_path / "True")
    assert known is not None and known.tasks == 1 and {key.name for key in known.keys} == {"train"}
    assert not (tmp_path / "False" / SHAPES).exists()


def test_separate_layers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'load_model\(..., layers="stacked"\)'):
        train(run(tmp_path), ps.load_model("tiny-random", layers="separate"))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_all_programs_are_begun_before_the_first_step(model: ps.Model, tmp_path: Path) -> None:
    settings = config(tmp_path, train={"steps": 2, "evaluate_every": 2}, evaluation=({"synthetic": 1},), compile_ahead=True)
    source = codes(model)
    events: list[str] = []
    trainer = Trainer(
        *(settings, model, [TaskData(settings.data[0], source)], [TaskData(settings.evaluation[0], source)]),
        on_step=lambda step, numbers: events.append("step"),
        say=events.append,
    )
    trainer.run()
    begun = [event for event in events if event.startswith("compiling the ")]
    first_step = events.index("step")
    assert len(begun) == len(set(begun)) and {event.split()[2] for event in begun} == {"train", "evaluate"}
    assert all(events.index(event) < first_step for event in begun)


class TestContinuing:
    @pytest.mark.slow
    def test_compiles_while_examples_are_read(
        self, model: ps.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(run(tmp_path, compile_ahead=True), model)
        said: list[str] = []
        read = starting.load_tasks

        def waits(settings: TrainConfig, processes: int) -> object:
            """Read only when something is being compiled: if nothing is, this would take a minute and fail."""
            for _ in range(600):
                if any(text.startswith("compiling the train step") for text in said):
                    return read(settings, processes)
                time.sleep(0.1)
            raise AssertionError("nothing is compiled while examples are read")

        monkeypatch.setattr(starting, "load_tasks", waits)
        outcome = train(run(tmp_path, compile_ahead=True, train={"steps": 3}), model, say=said.append)
        assert (outcome.begin, outcome.step) == (2, 3)
        assert len([text for text in said if text.startswith("compiling the train step")]) == len(read_keys(tmp_path))

    def test_what_reading_raises_is_raised(self, model: ps.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = run(tmp_path, compile_ahead=True)
        train(settings, model)

        def fails(settings: TrainConfig, processes: int) -> object:
            raise DataError("the examples are gone")

        monkeypatch.setattr(starting, "load_tasks", fails)
        with pytest.raises(DataError, match="the examples are gone"):
            train(run(tmp_path, compile_ahead=True, train={"steps": 3}), model)

    @pytest.mark.slow
    def test_another_number_of_tasks_is_compiled_for_anew(self, model: ps.Model, tmp_path: Path) -> None:
        """The number of tasks is part of a program: what was compiled for another one cannot be used."""
        source = codes(model)
        settings = config(tmp_path, train={"steps": 1}, data=({"synthetic": 1},) * 2, compile_ahead=True)
        examples = [source[index] for index in range(12)]
        halves = [ExampleList(name, examples) for name in ("a", "b")]
        other = starting.TrainingPrograms(starting.with_schedule_steps(settings, None), model, 1, print)
        trainer = Trainer(settings, model, [*map(TaskData, settings.data, halves)], programs=other)
        assert trainer.programs is not other
        assert trainer.run().step == 1


def read_keys(workdir: Path) -> tuple[Key, ...]:
    known = read_shapes(workdir)
    assert known is not None
    return known.keys


class TestKnownShapes:
    def test_are_read_back(self, tmp_path: Path) -> None:
        known = KnownShapes(3, (Key("train", SHAPE), Key("evaluate", SHAPE)))
        write_shapes(tmp_path, known)
        assert read_shapes(tmp_path) == known

    def test_are_none_where_there_are_none(self, tmp_path: Path) -> None:
        assert read_shapes(tmp_path) is None

    @pytest.mark.parametrize(
        "damage",
        ["", "[]", "{}", '{"tasks": 1}', '{"tasks": "x", "shapes": []}', '{"tasks": 1, "shapes": [{"program": "train"}]}'],
    )
    def test_damaged_ones_are_none(self, tmp_path: Path, damage: str) -> None:
        (tmp_path / SHAPES).write_text(damage)
        assert read_shapes(tmp_path) is None

    @pytest.mark.parametrize(("field", "value"), [("program", "eval"), ("slots", -1), ("rows", 1.5), ("width", None)])
    def test_impossible_ones_are_none(self, tmp_path: Path, field: str, value: object) -> None:
        entry = {"program": "train", **SHAPE._asdict(), field: value}
        (tmp_path / SHAPES).write_text(json.dumps({"tasks": 1, "shapes": [entry]}))
        assert read_shapes(tmp_path) is None


def test_a_step_that_runs_is_the_one_that_is_compiled_ahead(model: ps.Model, tmp_path: Path) -> None:
    source, settings = codes(model), config(tmp_path, train={"steps": 2})
    said: list[str] = []
    trainer = Trainer(settings, model, [TaskData(settings.data[0], source)], say=said.append)
    loaded = trainer.batches[0]
    assert not trainer.programs.is_there("train", loaded.shape)
    trainer.programs.compile_ahead([Key("train", loaded.shape)])
    _, waited = trainer.train_batch(loaded)
    assert waited > 0 and trainer.programs.is_there("train", loaded.shape)
    _, waited = trainer.train_batch(loaded)
    assert waited == 0 and len([line for line in said if line.startswith("compiled ")]) == 1
    trainer.programs.close()
