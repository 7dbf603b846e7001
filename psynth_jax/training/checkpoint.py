"""Checkpoints of a run, by Orbax: asynchronous, whole or not there, the newest few and the best one kept.

    WORKDIR/checkpoints/<step>/state     parameters, optimiser and average, by flat names
                              /data      where the input stands
                              /about     the run's config, and the base model's fingerprint

An unfinished one has a temporary name, which nobody takes for a checkpoint; the next start removes it.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from psynth_jax.errors import CheckpointError, TrainingError, listing
from psynth_jax.training.config import Checkpoints
from psynth_jax.training.step import TrainState

FOLDER = "checkpoints"
_STATE, _DATA, _ABOUT = "state", "data", "about"


def _eval_loss(numbers: Any) -> float:
    return float(numbers["eval_loss"])


def _named(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by names that do not depend on its classes."""
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, workdir: str | Path, options: Checkpoints):
        """Open, or prepare, the folder of a run's checkpoints; remove what a killed process left half written."""
        self._folder = Path(workdir).absolute() / FOLDER
        keep: list[Any] = [LatestN(options.keep)]
        if options.best:
            best = BestN(get_metric_fn=_eval_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
            keep.append(best)
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step that it takes
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(keep),
                best_fn=_eval_loss,  # without it the numbers are not kept
                best_mode="min",
                cleanup_tmp_directories=True,
            ),
            item_handlers={
                _STATE: ocp.StandardCheckpointHandler(),
                _DATA: ocp.JsonCheckpointHandler(),
                _ABOUT: ocp.JsonCheckpointHandler(),
            },
        )

    @property
    def latest(self) -> int | None:
        """The newest whole checkpoint; None: there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """All whole checkpoints."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The checkpoint with the lowest evaluation loss, of those that have one."""
        losses = {step: self._manager.metrics(step) for step in self.steps}
        known = {step: found["eval_loss"] for step, found in losses.items() if found and "eval_loss" in found}
        return min(known, key=lambda step: (known[step], -step)) if known else None

    def save(
        self, step: int, state: TrainState, data: Mapping[str, Any], about: Mapping[str, Any], eval_loss: float | None
    ) -> None:
        """Start to write a checkpoint; the arrays have been copied when this returns.

        Raises `TrainingError` when an earlier one could not be written: the disk is full, say.
        """
        items = ocp.args.Composite(
            **{
                _STATE: ocp.args.StandardSave(_named(state)),
                _DATA: ocp.args.JsonSave(dict(data)),
                _ABOUT: ocp.args.JsonSave(dict(about)),
            }
        )
        with self._written():
            self._manager.save(step, args=items, metrics=None if eval_loss is None else {"eval_loss": eval_loss})

    def wait(self) -> None:
        """Return when everything is on disk.  Raises `TrainingError` when it could not be written."""
        with self._written():
            self._manager.wait_until_finished()

    def about(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint says of its run.  Raises `CheckpointError` when it cannot be read."""
        return dict(self._restore(step, {_ABOUT: ocp.args.JsonRestore()})[_ABOUT])

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the state and the data's state of a checkpoint, placed as the arrays of `like` are.

        Raises `CheckpointError` when it cannot be read, or holds other arrays.
        """
        wanted = _named(like)
        with self._readable(step):
            held = _named(self._manager.item_metadata(step)[_STATE])
        wrong = [f"missing {name}" for name in wanted if name not in held]
        wrong += [f"extra {name}" for name in held if name not in wanted]
        wrong += [
            f"{name} has shape {list(held[name].shape)}, the config says {list(np.shape(array))}"
            for name, array in wanted.items()
            if name in held and tuple(held[name].shape) != np.shape(array)
        ]
        if wrong:
            raise CheckpointError(f"checkpoint {step} of {self._folder} does not fit: {listing(wrong)}")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        found = self._restore(step, {_STATE: ocp.args.StandardRestore(abstract), _DATA: ocp.args.JsonRestore()})
        state = jax.tree.unflatten(jax.tree.structure(like), [found[_STATE][name] for name in wanted])
        return state, dict(found[_DATA])

    def _restore(self, step: int, items: Mapping[str, Any]) -> Any:
        with self._readable(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turn a failed read into an error that names the checkpoint."""
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"checkpoint {step} of {self._folder} cannot be read: {reason}") from None

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turn a failed write into an error that says what is left."""
        try:
            yield
        except (OSError, ValueError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if full or "No space left" in str(error) else " ".join(str(error).split())[:300]
            free = shutil.disk_usage(self._folder).free >> 20 if self._folder.exists() else 0
            raise TrainingError(
                f"a checkpoint could not be written to {self._folder}: {reason} ({free} MiB are free); "
                f"the last whole one is step {self.latest}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written, and let go of the folder; an error that is on its way is not replaced."""
        try:
            with self._written():
                self._manager.close()
        except TrainingError:
            if kind is None:
                raise
