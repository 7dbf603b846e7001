"""Tokens that the model has no row for are refused where data meet the model, naming task and example."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.convert import tiny
from psynth_jax.convert.adapter_directory import Adapter, save_adapter
from psynth_jax.data.example import ExampleList
from psynth_jax.errors import ConfigError, DataError
from psynth_jax.training.config import Task
from psynth_jax.training.tasks import TaskData, load_tasks
from psynth_jax.training.trainer import Trainer
from tests.tiny import random_lora
from tests.training.codes import codes as make_codes
from tests.training.codes import start
from tests.training.examples import config


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return ps.load_model("tiny-random", layers="stacked")


@pytest.fixture(scope="module")
def codes(model: ps.Model) -> ExampleList:
    return make_codes(model)


class TestTokens:
    """JAX would take the last row of the embedding for a token that has none."""

    @pytest.mark.parametrize("token", [-1, 258, 2**31 - 1])
    @pytest.mark.parametrize("part", ["prompt", "pasted", "target", "prefix", "kept"])
    def test_one_without_a_row_is_named(
        self, model: ps.Model, codes: ExampleList, tmp_path: Path, part: str, token: int
    ) -> None:
        bad = np.array([1, token, 2], np.int32)
        example = codes[1]
        if part in ("prefix", "kept"):
            branch = dataclasses.replace(example.branches[0], **{part: bad})
            example = dataclasses.replace(example, branches=(branch, *example.branches[1:]))
            part = "branch 0"
        else:
            example = dataclasses.replace(example, **{part: bad})
        source = ExampleList("odd", [codes[0], example])
        said = rf"task odd, example 1 \('1'\): its {part}.* token id {token}, and tiny-random has rows for 0 to 257"
        with pytest.raises(DataError, match=said):
            start(config(tmp_path), model, source)
        run = config(tmp_path, evaluation=({"synthetic": 1},), train={"steps": 1, "evaluate_every": 1})
        with pytest.raises(DataError, match=said):
            Trainer(run, model, [TaskData(Task(synthetic=1), codes)], [TaskData(run.evaluation[0], source)])
        assert list(tmp_path.iterdir()) == []

    def test_batches_are_looked_at_too(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        """Data that has changed since the run began."""
        trainer = start(config(tmp_path), model, codes)
        trainer._sources[0]._examples[0] = dataclasses.replace(codes[0], target=np.array([999], np.int32))  # type: ignore[attr-defined]
        try:
            with pytest.raises(DataError, match="task codes, example 0"):
                [trainer.batches[number] for number in range(6)]
        finally:
            codes._examples[0] = make_codes(model, 1)[0]

    def test_a_teacher_that_writes_fewer_tokens(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        save_adapter(tmp_path / "cut", Adapter(random_lora(model.config, 1), None, 200), model)
        taught = {"data": ({"synthetic": 1, "distillation": 1.0},), "teacher": str(tmp_path / "cut")}
        with pytest.raises(ConfigError, match=r"teacher .*cut writes only 200 tokens"):
            start(config(tmp_path / "run", **taught), model, codes)

    def test_an_end_token_without_a_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiny, "CONFIG", tiny.CONFIG.model_copy(update={"vocab_size": 257}))
        with pytest.raises(ConfigError, match="tiny-random ends texts with token 257, and has rows for 0 to 256 only"):
            load_tasks(config(tmp_path))
