"""The directory that the published system saves (Parallel-Synthesis, arXiv 2606.14672), both ways.

DIR/cache_mapper.pt             the mapper, a file of torch.save: net.0 (3 -> hidden), net.2 (hidden -> 4)
DIR/cache_mapper_config.json    hidden_dim and metadata_features; may be missing
DIR/judger_lora/                the synthesizer's LoRA, by PEFT

A run saves the same under `latest/` or `step_checkpoints/latest/`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.convert.safetensors_file import read_json
from psynth_jax.convert.torch_file import read_torch_file, write_torch_file
from psynth_jax.errors import AdapterError
from psynth_jax.mapper import FEATURES, Mapper

MAPPER, MAPPER_CONFIG, LORA = "cache_mapper.pt", "cache_mapper_config.json", "judger_lora"
_WITHIN = ("", "latest", "step_checkpoints/latest")

# Their tensor -> our array; a linear layer of torch is stored output first.
_NAMES = {
    "net.0.weight": "hidden_kernel",
    "net.0.bias": "hidden_bias",
    "net.2.weight": "out_kernel",
    "net.2.bias": "out_bias",
}

# metadata_features -> what the mapper is told, in the order of its inputs; the layer always.
_INPUTS: dict[str, tuple[str, ...]] = {
    "both": FEATURES,
    "length": (FEATURES[0], FEATURES[2]),
    "num_agents": (FEATURES[1], FEATURES[2]),
    "none": (FEATURES[2],),
}


def find_release(directory: Path) -> Path | None:
    """Return where inside a directory the mapper or the LoRA lies; None: nowhere."""
    places = (directory / name for name in _WITHIN)
    return next((place for place in places if (place / MAPPER).is_file() or (place / LORA).is_dir()), None)


def read_mapper(directory: Path) -> Mapper | None:
    """Read cache_mapper.pt; None: there is none, which is the identity.

    A mapper that was trained without some features is one whose weights for them are zero.  Raises `CheckpointError` for a
    file that is damaged or holds anything but tensors, `AdapterError` for another mapper.
    """
    if not (directory / MAPPER).is_file():
        return None
    tensors = read_torch_file(directory / MAPPER)
    strange = sorted({*tensors} ^ {*_NAMES})
    if strange:
        raise AdapterError(f"{directory / MAPPER} must hold {', '.join(_NAMES)}; it differs in {', '.join(strange)}")
    arrays = {ours: np.asarray(tensors[theirs], np.float32).T for theirs, ours in _NAMES.items()}
    described = read_json(directory / MAPPER_CONFIG) if (directory / MAPPER_CONFIG).is_file() else {}
    kind = described.get("metadata_features", "both")
    if kind not in _INPUTS:
        raise AdapterError(
            f"{directory / MAPPER_CONFIG}: metadata_features is {kind!r}, expected one of {', '.join(_INPUTS)}"
        )
    given, kernel = _INPUTS[kind], arrays["hidden_kernel"]
    if kernel.ndim != 2 or len(kernel) != len(given):
        raise AdapterError(
            f"{directory / MAPPER} has net.0.weight {list(kernel.T.shape)}, "
            f"expected {len(given)} inputs (metadata_features {kind!r})"
        )
    arrays["hidden_kernel"] = np.zeros((len(FEATURES), kernel.shape[1]), np.float32)
    arrays["hidden_kernel"][[FEATURES.index(name) for name in given]] = kernel
    try:
        mapper = Mapper.from_arrays(arrays)
    except AdapterError as error:
        raise AdapterError(f"{directory / MAPPER}: {error}") from None
    hidden = described.get("hidden_dim", mapper.hidden_bias.size)
    if hidden != mapper.hidden_bias.size:
        raise AdapterError(f"{directory / MAPPER_CONFIG} says hidden_dim {hidden}, the mapper has {mapper.hidden_bias.size}")
    return mapper


def write_mapper(directory: Path, mapper: Mapper) -> None:
    """Write cache_mapper.pt and cache_mapper_config.json."""
    tensors: dict[str, HostArray] = {theirs: np.asarray(getattr(mapper, ours)).T for theirs, ours in _NAMES.items()}
    write_torch_file(directory / MAPPER, tensors)
    described = {"hidden_dim": int(mapper.hidden_bias.size), "metadata_features": "both"}
    (directory / MAPPER_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
