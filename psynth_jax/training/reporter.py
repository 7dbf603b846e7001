"""The numbers of a step: read while the next one runs, written, shown, and looked at for what is no number."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from psynth_jax.config import DecoderConfig
from psynth_jax.errors import TrainingError
from psynth_jax.nn.adapter import Lora
from psynth_jax.training.batch import Counts
from psynth_jax.training.flops import peak_flops, step_flops
from psynth_jax.training.metrics import Metrics
from psynth_jax.training.pipeline import Loaded

OnStep = Callable[[int, Mapping[str, Any]], None]


def losses_by_task(tasks: Sequence[str], sums: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean cross-entropy of every task that the sums have tokens of; tasks of one name count as one."""
    together: dict[str, tuple[float, float]] = {}
    for name, loss, count in zip(tasks, sums["task_cross_entropy"], sums["task_tokens"], strict=False):
        before = together.get(name, (0.0, 0.0))
        together[name] = before[0] + float(loss), before[1] + float(count)
    return {name: loss / count for name, (loss, count) in together.items() if count}


def filled(loaded: Loaded) -> float:
    """Return the part of a batch's packed lists that is tokens of examples, the rest being padding."""
    counts, shape = loaded.counts, loaded.shape
    # The last token of a target is predicted, and not read.
    student = counts.prompt_tokens + counts.target_tokens - counts.examples
    teacher = counts.teacher_tokens - (counts.examples if shape.teacher else 0)
    slots = len(loaded.planned.groups) * (shape.listed + shape.fed + shape.taught)
    return (counts.branch_tokens + student + teacher) / slots


class Reporter:
    """Takes the sums of each step as they are computed."""

    def __init__(
        self,
        metrics: Metrics,
        on_step: OnStep | None,
        config: DecoderConfig,
        lora: Lora | None,
        devices: int,
        tasks: Sequence[str],
        learning_rate: optax.Schedule,
        skipped: int,
        where: Callable[[int, Loaded], str],
    ):
        """Set up.

        Args:
          metrics, on_step: where numbers go.
          config, lora: of what is trained; its operations are counted.
          devices: how many share the work.
          tasks: their names.
          learning_rate: step, from 0 -> what it was done with.
          skipped: examples that no batch has.
          where: (step, batch) -> the message of an error for a loss that is no number.
        """
        self._metrics, self._on_step, self._config, self._lora = metrics, on_step, config, lora
        self._devices = devices
        self._tasks, self._rate, self._skipped, self._where = tasks, learning_rate, skipped, where
        self._waiting: tuple[int, Any, Loaded] | None = None
        self.pause()

    def pause(self) -> None:
        """Begin the next step's time now: what was done since the last one is no step."""
        self._since = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Take a compilation out of the step that it was done for."""
        self._since += seconds

    def add(self, step: int, sums: Any, loaded: Loaded) -> None:
        """Take a step that has been started; report the one before, which has ended by now or soon will."""
        before, self._waiting = self._waiting, (step, sums, loaded)
        if before is not None:
            self._report(*before)

    def finish(self) -> None:
        """Report the last step.  Raises `TrainingError` when its loss is no number."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._report(*waiting)

    def tell(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Write numbers, and pass them on to whoever watches."""
        self._metrics.write(step, numbers)
        if self._on_step is not None:
            self._on_step(step, numbers)

    def _report(self, step: int, sums: Any, loaded: Loaded) -> None:
        found = jax.device_get(sums)
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, 1e-9), now
        if not found["finite"]:
            raise TrainingError(self._where(step, loaded))
        numbers = self._numbers(step, found, loaded.counts, seconds)
        self.tell(step, numbers | {"filled": filled(loaded), "epoch": loaded.epoch})

    def _numbers(self, step: int, sums: Mapping[str, Any], counts: Counts, seconds: float) -> dict[str, Any]:
        tokens = max(float(sums["tokens"]), 1.0)
        numbers: dict[str, Any] = {"loss": float(sums["loss"]) / tokens}
        for name in ("cross_entropy", "distillation"):
            numbers[name] = float(sums[name]) / tokens
        numbers |= {f"loss/{name}": loss for name, loss in losses_by_task(self._tasks, sums).items()}
        peak, rate = peak_flops(jax.devices()[0]), step_flops(self._config, self._lora, counts) / seconds
        memory = jax.local_devices()[0].memory_stats() or {}
        return numbers | {
            "learning_rate": float(self._rate(step - 1)),
            "gradient_norm": float(sums["gradient_norm"]),
            "examples": counts.examples,
            "branch_tokens_per_s": counts.branch_tokens / seconds,
            "prompt_tokens_per_s": counts.prompt_tokens / seconds,
            "target_tokens_per_s": counts.target_tokens / seconds,
            "flops_per_s": rate,
            "mfu": None if peak is None else rate / (peak * self._devices),
            "step_seconds": seconds,
            "memory_bytes": memory.get("peak_bytes_in_use"),
            "skipped": self._skipped,
        }
