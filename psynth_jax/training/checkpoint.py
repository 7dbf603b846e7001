"""Checkpoints of a run, by Orbax: asynchronous, whole or not there, the newest few and the best one kept.

    WORKDIR/checkpoints/<step>/state     parameters, optimiser and average, by flat names
                              /data      where the input stands
                              /about     the run's config, and the base model's fingerprint
                              /metrics   the evaluation loss, where there was one

An unfinished one has a temporary name, which nobody takes for a checkpoint; the next start removes it.  In a bucket, where
no folder can be renamed, it lacks `commit_success.txt` instead.  Reading changes nothing: a run that is at work may be
exported.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from psynth_jax.errors import CheckpointError, InputError, TrainingError, UserError, listing
from psynth_jax.foreign import is_raised_by, reason
from psynth_jax.storage.client import BucketError, check_installed
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.training import checksums
from psynth_jax.training.checksums import Damaged
from psynth_jax.training.config import Checkpoints
from psynth_jax.training.step import TrainState

FOLDER = "checkpoints"
_STATE, _DATA, _ABOUT, _METRICS = "state", "data", "about", "metrics"
# What a checkpoint says of its run, beside what may be missing in one of an earlier version.
_ABOUT_KEYS: dict[str, type] = {"config": dict, "fingerprint": str, "model": str}


def _eval_loss(numbers: Any) -> float:
    return float(numbers["eval_loss"])


def _named(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by names that do not depend on its classes."""
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


class CheckpointReader:
    """The checkpoints of a run, to be read: whoever writes them may be at work."""

    def __init__(self, workdir: str | AnyPath):
        """Look where they are; nothing is read yet."""
        self._workdir: AnyPath = as_path(workdir).absolute()
        self._folder: AnyPath = self._workdir / FOLDER

    @property
    def latest(self) -> int | None:
        """The newest checkpoint; None: there is none."""
        return max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """All checkpoints that are finished.

        Raises `CheckpointError` when a bucket does not list them: without them a run would begin again.
        """
        names: list[str]
        if isinstance(self._folder, BucketPath):
            names = _committed(self._folder)
        else:
            try:
                names = [path.name for path in self._folder.iterdir()]
            except OSError:
                return []
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)

    @property
    def best(self) -> int | None:
        """The checkpoint with the lowest evaluation loss, of those that have one.  Raises as `check_metrics` does."""
        losses = self.check_metrics()
        return min(losses, key=lambda step: (losses[step], -step)) if losses else None

    def find(self, which: str) -> int:
        """Return the step of a checkpoint: "latest", "best" or a step.

        Raises:
          InputError: it is none of these, or there is none such.
          CheckpointError: the evaluation loss of one cannot be read.
        """
        if which == "best":
            step = self.best
        elif which == "latest":
            step = self.latest
        elif which.isascii() and which.isdecimal() and len(which) < 20:
            step = int(which)
        else:
            raise InputError(f"step must be latest, best or a whole number, not {which!r}")
        if step is None or step not in self.steps:
            there = ", ".join(map(str, self.steps)) or "none"
            raise InputError(f"{self._workdir} has no checkpoint {which!r}; there are: {there}")
        return step

    def check_metrics(self) -> dict[int, float]:
        """Return the evaluation losses of all checkpoints that have one.

        Raises `CheckpointError` where they cannot be read: Orbax reads those of all checkpoints when it opens them.
        """
        losses = {}
        for step in self.steps:
            with self._readable(step):
                found = self._read_metrics(step)
                if found is not None:
                    losses[step] = found
        return losses

    def about(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint says of its run.

        Raises `CheckpointError` when the checkpoint is damaged, naming the newest whole one.
        """
        with self._readable(step):
            return self._read_about(step)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the state and the data's state of a checkpoint, placed as the arrays of `like` are.

        Raises `CheckpointError` when it cannot be read, naming the newest whole one, or holds other arrays.
        """
        wanted = _named(like)
        with self._readable(step):
            data = self._read_data(step)
            held = self._held(step)
        wrong = [f"missing {name}" for name in wanted if name not in held]
        wrong += [f"extra {name}" for name in held if name not in wanted]
        wrong += [
            f"{name} has shape {list(held[name].shape)}, the config says {list(np.shape(array))}"
            for name, array in wanted.items()
            if name in held and tuple(held[name].shape) != np.shape(array)
        ]
        if wrong:
            raise CheckpointError(f"checkpoint {step} of {self._folder} does not fit: {listing(wrong)}")
        with self._readable(step):
            found = self._read_state(step, jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted))
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted]), data

    def _read_json(self, step: int, item: str, name: str) -> dict[str, Any]:
        file = self._folder / str(step) / item / name
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Damaged(f"{item}/{name} is missing") from None
        except BucketError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise Damaged(f"{item}/{name}: {error}") from None
        if not isinstance(value, dict):
            raise Damaged(f"{item}/{name} is not a JSON object")
        return value

    def _read_about(self, step: int) -> dict[str, Any]:
        has_sums = checksums.check(self._folder / str(step))
        about = self._read_json(step, _ABOUT, "metadata")
        if about.get("checksums", False) != has_sums:
            raise Damaged(f"{checksums.FILE} is missing")
        for name, kind in _ABOUT_KEYS.items():
            if not isinstance(about.get(name), kind):
                raise Damaged(f"{_ABOUT}/metadata does not say its {name}")
        return about

    def _read_data(self, step: int) -> dict[str, Any]:
        data = self._read_json(step, _DATA, "metadata")
        if data.get("next_index") != step:  # a step takes one batch
            raise Damaged(f"{_DATA}/metadata does not say that {step} batches were read")
        return data

    def _read_metrics(self, step: int) -> float | None:
        checksums.list_files(self._folder / str(step))  # nothing in there makes a reader wait for ever
        if not (self._folder / str(step) / _METRICS).exists():
            return None
        loss = self._read_json(step, _METRICS, "metrics").get("eval_loss")
        if not isinstance(loss, int | float) or isinstance(loss, bool) or not math.isfinite(loss):
            raise Damaged(f"{_METRICS}/metrics does not say its eval_loss")
        return float(loss)

    def _held(self, step: int) -> dict[str, Any]:
        """Return shapes and dtypes of the arrays of a checkpoint, by name."""
        folder = self._folder / str(step) / _STATE
        if not folder.is_dir():
            raise Damaged(f"{_STATE} is missing")
        return _named(ocp.StandardCheckpointHandler().metadata(_for_orbax(folder)))

    def _read_state(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        arguments = ocp.args.StandardRestore(dict(wanted))
        folder = _for_orbax(self._folder / str(step) / _STATE)
        found: dict[str, Any] = ocp.StandardCheckpointHandler().restore(folder, args=arguments)
        if int(found["step"]) != step:
            raise Damaged(f"it holds the state after step {int(found['step'])}")
        return found

    def _is_whole(self, step: int) -> bool:
        """Whether a checkpoint can be read to its end: it is, onto one device."""
        device = SingleDeviceSharding(jax.local_devices()[0])
        try:
            self._read_about(step)
            self._read_data(step)
            self._read_metrics(step)
            arrays = self._held(step).items()
            self._read_state(
                step, {name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=device) for name, each in arrays}
            )
        except Exception:  # noqa: BLE001 - whatever it is, this one is not whole
            return False
        return True

    @contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turn a failed read into an error that names the checkpoint, and the newest whole one."""
        try:
            yield
        except (MemoryError, UserError):
            raise
        # Orbax and TensorStore raise OSError, ValueError, KeyError and plain Exception for one damaged byte or another.
        except Exception as error:  # noqa: BLE001
            _without_loop_noise()
            if isinstance(self._folder, BucketPath) and not isinstance(error, Damaged):
                # A bucket that does not answer says nothing of what is in it: nothing is to be removed.
                raise CheckpointError(f"checkpoint {step} of {self._folder} cannot be read: {reason(error)}") from None
            place = self._folder / str(step)
            others = [other for other in reversed(self.steps) if other != step]
            whole = next((other for other in others if self._is_whole(other)), None)
            advice = f"step {whole} is whole: remove {place} to go on there"
            if whole is None:
                advice = f"no other one is whole: remove {self._folder} to begin again"
            raise CheckpointError(f"checkpoint {step} cannot be read: {reason(error)}; {advice}") from None


def _committed(folder: BucketPath) -> list[str]:
    """Return the names of the folders right below that are finished."""
    try:
        listed = folder.files()
    except OSError as error:
        raise CheckpointError(f"the checkpoints in {folder} cannot be listed: {error.strerror}") from None
    mark = f"/{checksums.COMMITTED}"
    return [each.name.removesuffix(mark) for each in listed if each.name.endswith(mark) and each.name.count("/") == 1]


def _for_orbax(path: AnyPath) -> Any:
    """Return a path as Orbax takes it."""
    if isinstance(path, Path):
        return path
    import fsspec
    from etils import epath

    check_installed()
    # What gcsfs, behind epath, remembers of a bucket is as old as this process; others write there, too.
    fsspec.filesystem("gs").invalidate_cache()
    return epath.Path(str(path))


def _without_loop_noise() -> None:
    """Drop what TensorStore says when a read has failed: its other reads end after their event loop was closed.

    They end at any time later, so this stays for the rest of the process.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    before = sys.unraisablehook
    if getattr(before, "drops_loop_noise", False):
        return

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            before(unraisable)

    hook.drops_loop_noise = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


class CheckpointStore(CheckpointReader):
    """The checkpoints of a run that is at work: of one process at a time, or of one job."""

    def __init__(self, workdir: str | AnyPath, options: Checkpoints, check: Callable[[], None] = lambda: None):
        """Open, or prepare, the folder of a run's checkpoints; remove what a killed process left half written.

        Args:
          check: called before a checkpoint is finished; it raises when the folder is another run's.

        Raises `CheckpointError` when the evaluation loss of one cannot be read, and `TrainingError` when a bucket cannot be
        written.
        """
        super().__init__(workdir)
        self.check_metrics()
        self._check = check
        self._saving: int | None = None
        keep: list[Any] = [LatestN(options.keep)]
        if options.best:
            best = BestN(get_metric_fn=_eval_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
            keep.append(best)
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step that it takes
        with self._written():
            self._manager = self._open(options, keep)

    def _open(self, options: Checkpoints, keep: list[Any]) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            _for_orbax(self._folder),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(keep),
                best_fn=_eval_loss,  # without it the numbers are not kept
                best_mode="min",
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._note_sums),
            ),
            item_handlers={
                _STATE: ocp.StandardCheckpointHandler(),
                _DATA: ocp.JsonCheckpointHandler(),
                _ABOUT: ocp.JsonCheckpointHandler(),
            },
        )

    def _note_sums(self) -> None:
        """Note the sums of what is about to become a checkpoint; called by Orbax, in a thread of its own."""
        if jax.process_index() != 0:
            return
        self._check()
        if isinstance(self._folder, BucketPath):
            checksums.note(self._folder / str(self._saving))
            return
        (unnamed,) = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        checksums.note(unnamed)

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
                _ABOUT: ocp.args.JsonSave({**about, "checksums": True}),
            }
        )
        with self._written():
            self._manager.wait_until_finished()  # the one before has its sums by now
            self._saving = step
            self._manager.save(step, args=items, metrics=None if eval_loss is None else {"eval_loss": eval_loss})

    def wait(self) -> None:
        """Return when everything is on disk.  Raises `TrainingError` when it could not be written."""
        with self._written():
            self._manager.wait_until_finished()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turn a failed write into an error that says what is left."""
        try:
            yield
        # gcsfs and Google's client raise exceptions of their own in a bucket; all others go on as they are.
        except Exception as error:
            in_bucket = isinstance(self._folder, BucketPath) and is_raised_by("buckets", error)
            if not (in_bucket or isinstance(error, OSError | ValueError)):
                raise
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk is full" if full or "No space left" in str(error) else reason(error)
            raise TrainingError(
                f"a checkpoint could not be written to {self._folder}: {why}{self._free()}; {self._last_whole()}"
            ) from None

    def _last_whole(self) -> str:
        try:
            return f"the last whole one is step {self.latest}"
        except CheckpointError:  # a bucket that does not answer
            return "those before stay"

    def _free(self) -> str:
        if isinstance(self._folder, BucketPath):
            return ""
        free = shutil.disk_usage(self._folder).free >> 20 if self._folder.exists() else 0
        return f" ({free} MiB are free)"

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
