"""Where a run's numbers go: WORKDIR/metrics.jsonl always, TensorBoard files, Weights & Biases.

A line of the file is one step, or one evaluation.  A run that is continued appends; steps that were done again after the
last checkpoint are there twice, and the later line counts.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from psynth_jax.errors import ConfigError
from psynth_jax.training.config import Logging

FILE = "metrics.jsonl"


class Metrics:
    """Writes numbers by step."""

    def __init__(self, workdir: str | Path, options: Logging, config: Mapping[str, Any], *, here: bool):
        """Open the files.

        Args:
          workdir, options: where and what.
          config: shown next to the numbers where a page can.
          here: whether this process writes at all.

        Raises:
          ConfigError: wandb is asked for and not installed.
        """
        self._file: TextIO | None = None
        self._board: Any = None
        self._wandb: Any = None
        if options.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise ConfigError("logging.wandb_project is set, but wandb is not installed: pip install wandb")
        if not here:
            return
        _drop_torn_line(Path(workdir) / FILE)
        self._file = (Path(workdir) / FILE).open("a", encoding="utf-8")
        if options.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(Path(workdir) / "tensorboard"))
        if options.wandb_project is not None:
            import wandb

            self._wandb = wandb.init(project=options.wandb_project, config=dict(config), dir=str(workdir))

    def write(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """Write the numbers of a step; None is left out of what is drawn."""
        if self._file is None:
            return
        known = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **{name: known.get(name) for name in numbers}}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the files."""
        for part in (self._file, self._board):
            if part is not None:
                part.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_torn_line(path: Path) -> None:
    """Cut a last line that a killed process did not finish."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
