"""Examples of random token ids, and runs on tiny models, for the tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.data.example import BranchTokens, Example
from psynth_jax.training.config import TrainConfig
from tests.tiny import token_ids


def ids(seed: int, count: int) -> HostArray:
    return np.array(token_ids(seed, count), np.int32)


def random_examples(count: int, seed: int = 0, task: str = "random") -> list[Example]:
    """Ragged in everything: one to four branches, with and without a prefix."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        first = 1000 * (seed + 1) * (number + 1)
        branches = tuple(
            BranchTokens(ids(first + 10 + i, int(rng.integers(0, 4))), ids(first + 20 + i, int(rng.integers(1, 12))))
            for i in range(int(rng.integers(1, 5)))
        )
        sizes = [int(rng.integers(*bounds)) for bounds in ((3, 9), (30, 44), (2, 7))]
        prompt, pasted, target = (ids(first + part, size) for part, size in enumerate(sizes))
        examples.append(Example(f"r{number}", task, prompt, pasted, target, branches))
    return examples


def config(workdir: object, **changed: Any) -> TrainConfig:
    """A run of six steps; `changed` replaces whole sections."""
    values: dict[str, Any] = {
        "workdir": str(workdir),
        "model": "tiny-random",
        "data": ({"synthetic": 1},),
        "train": {"steps": 6},
        "batch": {"tokens": 2048, "examples": 4},
        "checkpoint": {"every": 3},
        "logging": {"tensorboard": False},
        "optimizer": {"learning_rate": 1e-2, "warmup": 2},
    }
    return TrainConfig.parse(values | changed)
