"""Where a run's numbers go: WORKDIR/metrics.jsonl always, TensorBoard files, Weights & Biases.

A line of the file is one step, or one evaluation.  A run that is continued appends.  A line ends all lines before it that
have larger steps: they were done after the checkpoint that the run was continued from.  Where that leaves lost steps at the
end of the file, the first new line has the checkpoint's step and nothing else.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from psynth_jax.errors import ConfigError, UserError
from psynth_jax.files import refuse_special
from psynth_jax.training.config import Logging
from psynth_jax.training.curves import FILE, read_metrics


class Metrics:
    """Writes numbers by step."""

    def __init__(
        self, workdir: str | Path, options: Logging, config: Mapping[str, Any], *, here: bool, begin: int | None = None
    ):
        """Open the files.

        Args:
          workdir, options: where and what.
          config: shown next to the numbers where a page can.
          here: whether this process writes at all.
          begin: the step that the run stands at; larger ones in the files are no longer part of it.  None: none are known.

        Raises:
          ConfigError: wandb is asked for and not installed, or the file of numbers is no regular file.
          OSError: the files cannot be written.
        """
        self._file: TextIO | None = None
        self._board: Any = None
        self._wandb: Any = None
        if options.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise ConfigError("logging.wandb_project is set, but wandb is not installed: pip install wandb")
        if not here:
            return
        path = Path(workdir) / FILE
        refuse_special(path, ConfigError)
        _drop_torn_line(path)
        lost = begin is not None and _last_step(path) > begin
        self._file = path.open("a", encoding="utf-8")
        if lost:
            self._write_line({"step": begin})
        if options.tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard hides what earlier files have from this step on.
            purge = None if begin is None else begin + 1
            self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=purge)
        if options.wandb_project is not None:
            import wandb

            self._wandb = wandb.init(project=options.wandb_project, config=dict(config), dir=str(workdir))

    def write(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """Write the numbers of a step; None is left out of what is drawn."""
        if self._file is None:
            return
        known = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
        self._write_line({"step": step, **{name: known.get(name) for name in numbers}})
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def _write_line(self, values: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

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


def _last_step(path: Path) -> int:
    """Return the largest step that the curves of a file have now; -1: none."""
    try:
        curves, _ = read_metrics(path)
    except UserError:  # there is none yet, or nothing can be read of it
        return -1
    return max(int(steps[-1]) for steps, _ in curves.values())
