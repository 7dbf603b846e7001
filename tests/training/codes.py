"""Questions whose answer stands in one branch and nowhere else, and the runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import jax
import numpy as np

import psynth_jax as ps
from psynth_jax.data.example import ExampleList, tokenise
from psynth_jax.data.record import BranchText, Record
from psynth_jax.sharding import replicated
from psynth_jax.training.batch import place
from psynth_jax.training.config import TrainConfig
from psynth_jax.training.reporter import OnStep
from psynth_jax.training.step import StepOptions, gradients
from psynth_jax.training.tasks import TaskData
from psynth_jax.training.trainer import Trainer


def codes(model: ps.Model, count: int = 24) -> ExampleList:
    assert model.tokenizer is not None
    (end,) = model.stop_ids
    examples = []
    for number in range(count):
        code = str(Random(number).randint(10, 99))
        branches = (BranchText(f"The code is {code}."), BranchText("It rains."))
        examples.append(tokenise(Record(str(number), "codes", "Code?", branches, code), model.tokenizer, end))
    return ExampleList("codes", examples)


def start(run: TrainConfig, model: ps.Model, source: ExampleList, on_step: OnStep | None = None) -> Trainer:
    return Trainer(run, model, [TaskData(run.data[0], source)], on_step=on_step)


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def next_gradient(trainer: Trainer) -> list[np.ndarray]:
    """The gradient of a run's next step, whole on the host."""
    model, mesh = trainer.model.decoder, trainer.model.mesh
    batch = place(trainer.batches[trainer.step].batch, mesh)
    options = StepOptions(lora_scale=trainer.config.trainable.alpha / trainer.config.trainable.rank, tasks=1)
    whole = None if mesh is None else replicated(mesh)

    def gradient(parameters: Any, model: Any, batch: Any) -> Any:
        return gradients(parameters, model, batch, options)[0]

    found = jax.jit(gradient, out_shardings=whole)(trainer.state.parameters, model, batch)
    return [np.asarray(leaf.addressable_data(0)) for leaf in jax.tree.leaves(found)]


def distance(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Norm of the difference, relative to the norm of `right`."""
    parts = [(((a - b) ** 2).sum(), (b**2).sum()) for a, b in zip(left, right, strict=True)]
    return float(np.sqrt(sum(part[0] for part in parts) / sum(part[1] for part in parts)))
