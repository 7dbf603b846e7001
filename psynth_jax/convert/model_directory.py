"""A model directory of ours: an Orbax checkpoint of the parameters, cut so that any host reads just what its devices hold.

DIR/psynth_model.json      format version, fingerprint of the weights
DIR/parameters/            Orbax (OCDBT, zarr3): embedding, layers.<l>.<name>, final_norm, head, in our axis order
DIR/config.json            and tokenizer, generation config: as in a Hugging Face directory

It is written tensor by tensor, and read piece by piece through tensorstore.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.rules import (
    Form,
    Rule,
    StoredParameter,
    find_problems,
    parameter_dtype,
    refuse_problems,
    stored_parameters,
)
from psynth_jax.convert.safetensors_file import read_json, write_json
from psynth_jax.convert.stream import ModelStream, in_groups, tensors_of
from psynth_jax.convert.write_hf import write_companions
from psynth_jax.errors import CheckpointError
from psynth_jax.files import refuse_special
from psynth_jax.nn.decoder import parameter_letters

FORMAT = 1
_DESCRIPTION, _PARAMETERS, _STATE = "psynth_model.json", "parameters", "state"
_CHUNK_BYTES = 16 << 20  # the least that is read at once
_FILE_BYTES = 128 << 20  # of a data file: so much is collected in memory before it is written


def is_model(directory: Path) -> bool:
    """Whether a directory is one of ours."""
    return (directory / _DESCRIPTION).is_file()


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
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
    context.memory.deepcopy_host_arrays = False  # nobody changes them while they are written
    with context:
        for group in in_groups(sorted(tensors, key=lambda tensor: -tensor.size)):  # tables first, while little is held
            ocp.partial.save(place, {tensor.name: tensor.read() for tensor in group})
        ocp.partial.finalize(place)
    write_companions(directory, stream, stream.config, {tensor.dtype for tensor in tensors})
    fingerprint = stream.written_identity().fingerprint
    write_json(directory / _DESCRIPTION, {"format": FORMAT, "fingerprint": fingerprint, "name": stream.name})


class OrbaxTensors:
    """The arrays of an Orbax checkpoint, as a `rules.TensorSource`."""

    def __init__(self, directory: Path):
        """Read what there is.  Raises `CheckpointError` for a checkpoint that is absent, unfinished or damaged."""
        for file in sorted(directory.rglob("*")):
            refuse_special(file, CheckpointError)
        state = directory / _STATE
        described = read_json(state / "_METADATA")
        try:
            names = [item["key_metadata"][0]["key"] for item in described["tree_metadata"].values()]
            driver = "zarr3" if described["use_zarr3"] else "zarr"
            store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state.absolute()}/"}}
        except (KeyError, TypeError, IndexError, AttributeError):
            raise CheckpointError(f"{state / '_METADATA'} does not describe an Orbax checkpoint of arrays") from None
        self.path = directory
        self._arrays: dict[str, Any] = {}
        opening = {
            name: tensorstore.open({"driver": driver, "kvstore": {**store, "path": f"{name}/"}}, read=True, open=True)
            for name in names
        }
        for name, future in opening.items():
            self._arrays[name] = self._result(name, future)

    def _result(self, name: str, future: Any) -> Any:
        try:
            return future.result()
        except (ValueError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{name} of {self.path} cannot be read: {reason}") from None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every array."""
        return {name: tuple(array.shape) for name, array in self._arrays.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that an array is stored in."""
        return np.dtype(self._arrays[name].dtype.numpy_dtype)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read an array, or the chunks that hold a piece of it."""
        array = self._arrays[name]
        return np.asarray(self._result(name, (array[index] if index else array).read()))

    def pick(self, name: str, places: tuple[HostArray, ...]) -> HostArray:
        """Read single elements of an array, an index array for each axis; every chunk that has one is read once."""
        return np.asarray(self._result(name, self._arrays[name].vindex[places].read()))


def list_parameters(directory: Path, config: DecoderConfig, dtype: str | None) -> list[StoredParameter]:
    """Check all arrays of a model directory, then list the parameters, which are still to be read.

    Raises:
      CheckpointError: another format version, or listing every missing, misshaped or extra array.
      ConfigError: unknown dtype.
    """
    target = parameter_dtype(dtype)
    version = read_json(directory / _DESCRIPTION).get("format")
    if version != FORMAT:
        raise CheckpointError(f"{directory}: model format {version}, this version reads format {FORMAT}")
    rules, source = _rules(config), OrbaxTensors(directory / _PARAMETERS)
    refuse_problems(directory, find_problems(rules, config, source.shapes()))
    return stored_parameters(rules, config, source, target)
