"""A model directory of ours: an Orbax checkpoint of the parameters, cut so that any host reads just what its devices hold.

DIR/psynth_model.json      format version, fingerprint of the weights
DIR/parameters/            Orbax (OCDBT, zarr3): embedding, layers.<l>.<name>, final_norm, head, in our axis order
DIR/config.json            and tokenizer, generation config: as in a Hugging Face directory

It is written tensor by tensor, and read piece by piece through tensorstore.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.progress import counted
from psynth_jax.convert.rules import (
    Form,
    Rule,
    find_problems,
    parameter_dtype,
    refuse_problems,
)
from psynth_jax.convert.safetensors_file import read_json, write_json
from psynth_jax.convert.stored import StoredParameter, stored_parameters
from psynth_jax.convert.stream import ModelStream, in_groups, tensors_of
from psynth_jax.convert.write_hf import write_companions
from psynth_jax.errors import CheckpointError
from psynth_jax.files import refuse_special
from psynth_jax.foreign import reading
from psynth_jax.nn.decoder import parameter_letters
from psynth_jax.storage.paths import AnyPath, BucketPath

FORMAT = 1
DESCRIPTION, _PARAMETERS, _STATE = "psynth_model.json", "parameters", "state"
_CHUNK_BYTES = 16 << 20  # the least that is read at once
_READ_ONCE = {"recheck_cached_data": "open", "recheck_cached_metadata": "open"}
_FILE_BYTES = 128 << 20  # of a data file: so much is collected in memory before it is written


def is_model(directory: Path) -> bool:
    """Whether a directory is one of ours."""
    return (directory / DESCRIPTION).is_file()


def _rules(config: DecoderConfig) -> list[Rule]:
    """Return the rule table of our own names, a tensor for each layer, and our own axis order."""
    return [
        Rule(name, name.replace("layers.", "layers.{l}."), Form(letters.removeprefix("L "), letters.removeprefix("L ")))
        for name, letters in parameter_letters(config).items()
    ]


def write_model_directory(directory: Path, stream: ModelStream) -> None:
    """Write a model into an empty directory, in the dtype that it is opened in."""
    from orbax.checkpoint.experimental import v1 as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step that it takes
    place, tensors = directory / _PARAMETERS, tensors_of(stream, _rules(stream.config), stream.config)
    tensors = counted(tensors, f"converting {stream.name}")
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
    context.memory.deepcopy_host_arrays = False  # nobody changes them while they are written
    with context:
        for group in in_groups(sorted(tensors, key=lambda tensor: -tensor.size)):  # tables first, while little is held
            arrays = {tensor.name: tensor.read() for tensor in group}
            _to_its_end(ocp.partial.save, place, arrays)
        _to_its_end(ocp.partial.finalize, place)
    write_companions(directory, stream, stream.config, {tensor.dtype for tensor in tensors})
    fingerprint = stream.written_identity().fingerprint
    write_json(directory / DESCRIPTION, {"format": FORMAT, "fingerprint": fingerprint, "name": stream.name})


def _to_its_end(write: Callable[..., Any], *arguments: Any) -> None:
    """Let Orbax write in a thread and wait for that, even where a signal ends this function.

    Otherwise its own threads would still put files into a folder that is just being removed.
    """
    with ThreadPoolExecutor(1) as pool:  # leaving the block waits
        pool.submit(contextvars.copy_context().run, write, *arguments).result()


class OrbaxTensors:
    """The arrays of an Orbax checkpoint, as a `rules.TensorSource`."""

    def __init__(self, directory: AnyPath):
        """Read what there is.  Raises `CheckpointError` for a checkpoint that is absent, unfinished or damaged."""
        if isinstance(directory, Path):
            for file in sorted(directory.rglob("*")):  # tensorstore would wait for ever
                refuse_special(file, CheckpointError)
        state = directory / _STATE
        described = read_json(state / "_METADATA")
        try:
            names = [item["key_metadata"][0]["key"] for item in described["tree_metadata"].values()]
            driver = "zarr3" if described["use_zarr3"] else "zarr"
            store = {"driver": "ocdbt", "base": _key_values(state)}
            texts = all(isinstance(name, str) and name for name in names)
        except (KeyError, TypeError, IndexError, AttributeError):
            texts = False
        if not texts:
            raise CheckpointError(f"{state / '_METADATA'} does not describe an Orbax checkpoint of arrays")
        self.path = directory
        self._arrays: dict[str, Any] = {}
        opening = {}
        for name in names:
            # What is opened is complete: nobody writes to it while it is read.
            stored = {"driver": driver, "kvstore": {**store, "path": f"{name}/"}, **_READ_ONCE}
            with self._reading(name):
                opening[name] = tensorstore.open(stored, read=True, open=True)
        for name, future in opening.items():
            with self._reading(name):
                self._arrays[name] = future.result()

    def _reading(self, name: str) -> AbstractContextManager[None]:
        return reading(f"{name} of {self.path}", "tensorstore")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every array."""
        return {name: tuple(array.shape) for name, array in self._arrays.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that an array is stored in."""
        return np.dtype(self._arrays[name].dtype.numpy_dtype)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read an array, or the chunks that hold a piece of it."""
        array = self._arrays[name]
        with self._reading(name):
            values = (array[index] if index else array).read().result()
        return np.asarray(values)

    def pick(self, name: str, places: tuple[HostArray, ...]) -> HostArray:
        """Read single elements of an array, an index array for each axis; every chunk that has one is read once."""
        with self._reading(name):
            values = self._arrays[name].vindex[places].read().result()
        return np.asarray(values)


def _key_values(directory: AnyPath) -> dict[str, Any]:
    """Return how tensorstore opens a directory."""
    if isinstance(directory, BucketPath):
        # By itself tensorstore would try again for a quarter of an hour, in silence.
        tries = {"max_retries": 6, "initial_delay": "1s", "max_delay": "16s"}
        context = {"gcs_request_retries": tries}
        return {"driver": "gcs", "bucket": directory.bucket, "path": f"{directory.key}/", "context": context}
    return {"driver": "file", "path": f"{directory.absolute()}/"}


def list_parameters(directory: Path, config: DecoderConfig, dtype: str | None, arrays: AnyPath) -> list[StoredParameter]:
    """Check all arrays of a model directory, then list the parameters, which are still to be read.

    Args:
      arrays: the directory itself, or the place in a bucket of which it is a copy without the arrays.

    Raises:
      CheckpointError: another format version, or listing every missing, misshaped or extra array.
      ConfigError: unknown dtype.
    """
    target = parameter_dtype(dtype)
    version = read_json(directory / DESCRIPTION).get("format")
    if version != FORMAT:
        raise CheckpointError(f"{directory}: model format {version}, this version reads format {FORMAT}")
    rules, source = _rules(config), OrbaxTensors(arrays / _PARAMETERS)
    refuse_problems(directory, find_problems(rules, config, source.shapes()))
    return stored_parameters(rules, config, source, target)
