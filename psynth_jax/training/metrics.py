"""Where a run's numbers go: WORKDIR/metrics.jsonl always, TensorBoard files, Weights & Biases.

A line of the file is one step, or one evaluation.  A run that is continued appends.  A line ends all lines before it that
have larger steps: they were done after the checkpoint that the run was continued from.  Where that leaves lost steps at the
end of the file, the first new line has the checkpoint's step and nothing else.  In a bucket the lost lines are removed.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from psynth_jax.errors import ConfigError, TrainingError, UserError
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.training.config import Logging
from psynth_jax.training.curves import read_metrics
from psynth_jax.training.metric_files import FILE, BucketLines, FileLines

BOARD_PAUSE = 60.0  # seconds between two uploads of TensorBoard's files


class Metrics:
    """Writes numbers by step, in the process that opens it; in others it does nothing."""

    def __init__(self, workdir: str | AnyPath, options: Logging, check: Callable[[], None] = lambda: None):
        """Prepare; nothing is written yet.

        Args:
          workdir, options: where and what.
          check: called before something is written to a bucket; it raises when the folder is another run's.

        Raises:
          ConfigError: wandb is asked for and not installed.
        """
        self._workdir, self._options, self._check = as_path(workdir), options, check
        self._lines: FileLines | BucketLines | None = None
        self._board: _Board | None = None
        self._wandb: Any = None
        if options.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise ConfigError("logging.wandb_project is set, but wandb is not installed: pip install wandb")

    def open(self, config: Mapping[str, Any], begin: int | None = None) -> None:
        """Open the files.

        Args:
          config: shown next to the numbers where a page can.
          begin: the step that the run stands at; larger ones in the files are no longer part of it.  None: none are known.

        Raises:
          ConfigError: the file of numbers is no regular file.
          OSError: the files cannot be written.
        """
        place = self._workdir
        if isinstance(place, BucketPath):
            self._lines = BucketLines(place, begin, self._check)
        else:
            lost = begin is not None and _last_step(place / FILE) > begin
            self._lines = FileLines(place)
            if lost:
                self._lines.write({"step": begin})
        if self._options.tensorboard:
            self._board = _Board(place / "tensorboard", begin, self._check)
        if self._options.wandb_project is not None:
            import wandb

            folder = tempfile.gettempdir() if isinstance(place, BucketPath) else str(place)
            self._wandb = wandb.init(project=self._options.wandb_project, config=dict(config), dir=folder)

    def write(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """Write the numbers of a step; None is left out of what is drawn."""
        if self._lines is None:
            return
        known = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
        self._lines.write({"step": step, **{name: known.get(name) for name in numbers}})
        if self._board is not None:
            self._board.write(step, known)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def flush(self) -> None:
        """Have all lines where they belong.  Raises `OSError` when a bucket does not take them."""
        if self._lines is not None:
            self._lines.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the files, all of them; an error that is on its way is not replaced."""
        failed: Exception | None = None
        closing = [part.close for part in (self._lines, self._board) if part is not None]
        if self._wandb is not None:
            closing.append(self._wandb.finish)
        for close in closing:
            try:
                close()
            except (OSError, TrainingError) as error:
                failed = failed or error
        if failed is not None and kind is None:
            raise failed


class _Board:
    """TensorBoard files.  Those for a bucket grow on this disk; a thread uploads them, as they are, now and then."""

    def __init__(self, folder: AnyPath, begin: int | None, check: Callable[[], None]):
        from tensorboardX import SummaryWriter

        self._check = check
        self._target = folder if isinstance(folder, BucketPath) else None
        self._scratch = tempfile.TemporaryDirectory(prefix="psynth-") if self._target is not None else None
        self._folder = Path(self._scratch.name) if self._scratch is not None else folder
        self._uploads = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._uploaded_at = -math.inf
        # TensorBoard hides what earlier files have from this step on.
        purge = None if begin is None else begin + 1
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def write(self, step: int, numbers: Mapping[str, float | int]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Begin an upload, if the last one was a while ago and has ended."""
        idle = self._running is None or self._running.done()
        if self._target is not None and idle and time.monotonic() - self._uploaded_at > BOARD_PAUSE:
            self._uploaded_at = time.monotonic()
            self._writer.flush()
            self._running = self._uploads.submit(self._upload)

    def close(self) -> None:
        self._writer.close()
        self._uploads.shutdown()
        try:
            self._upload()
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()

    def _upload(self) -> None:
        if self._target is not None:
            self._check()
            for path in sorted(Path(str(self._folder)).iterdir()):
                (self._target / path.name).upload(path)


def _last_step(path: AnyPath) -> int:
    """Return the largest step that the curves of a run have now; -1: none."""
    try:
        curves, _ = read_metrics(path)
    except UserError:  # there is none yet, or nothing can be read of it
        return -1
    return max(int(steps[-1]) for steps, _ in curves.values())
