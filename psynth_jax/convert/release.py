"""The directory that the published system saves (Parallel-Synthesis, arXiv 2606.14672), both ways.

DIR/cache_mapper.pt             the mapper, a file of torch.save: net.0 (3 -> hidden), net.2 (hidden -> 4)
DIR/cache_mapper_config.json    hidden_dim and metadata_features; may be missing
DIR/judger_lora/                the synthesizer's LoRA, by PEFT
DIR/checkpoint_meta.json        how far it was trained; may be missing

A run saves the same under `latest/` or `step_checkpoints/latest/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.convert import peft
from psynth_jax.convert.adapter_directory import Adapter, checked_sink
from psynth_jax.convert.adapter_numbers import refuse_not_finite, rounded
from psynth_jax.convert.base import Base
from psynth_jax.convert.hub import is_hub_id
from psynth_jax.convert.rules import FLOAT32
from psynth_jax.convert.safetensors_file import read_json, write_json
from psynth_jax.convert.torch_file import read_torch_file, write_torch_file
from psynth_jax.errors import AdapterError, ModelMismatchError, listing, shown
from psynth_jax.mapper import FEATURES, Mapper
from psynth_jax.template_variables import TemplateVariables, checked_variables

MAPPER, MAPPER_CONFIG, LORA = "cache_mapper.pt", "cache_mapper_config.json", "judger_lora"
META, CARD = "checkpoint_meta.json", "README.md"
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

_RESIZE = "For PEFT, cut the base first: `model.resize_token_embeddings({})`."


def find_release(directory: Path) -> Path | None:
    """Return where inside a directory the mapper or the LoRA lies; None: nowhere."""
    places = (directory / name for name in _WITHIN)
    return next((place for place in places if _is_there(place / MAPPER) or (place / LORA).is_dir()), None)


def _is_there(file: Path) -> bool:
    """Whether a directory has such an entry, be it a link to nothing: reading it says so, then."""
    return file.is_symlink() or file.exists()


def read_mapper(directory: Path) -> Mapper | None:
    """Read cache_mapper.pt; None: there is none, which is the identity.

    A mapper that was trained without some features is one whose weights for them are zero.  Raises `CheckpointError` for a
    file that is damaged or holds anything but tensors, `AdapterError` for another mapper, or numbers that are not finite.
    """
    if not _is_there(directory / MAPPER):
        return None
    tensors = read_torch_file(directory / MAPPER)
    strange = sorted({*tensors} ^ {*_NAMES})
    if strange:
        raise AdapterError(f"{directory / MAPPER} must hold {', '.join(_NAMES)}; it differs in {listing(strange, ', ')}")
    arrays = {}
    for theirs, ours in _NAMES.items():
        refuse_not_finite(directory / MAPPER, theirs, tensors[theirs])
        arrays[ours] = rounded(directory / MAPPER, theirs, tensors[theirs], FLOAT32).T
    described = _json_if_there(directory / MAPPER_CONFIG)
    kind = described.get("metadata_features", "both")
    if not isinstance(kind, str) or kind not in _INPUTS:
        raise AdapterError(
            f"{directory / MAPPER_CONFIG}: metadata_features is {shown(kind)}, expected one of {', '.join(_INPUTS)}"
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
    if type(hidden) is not int or hidden != mapper.hidden_bias.size:
        raise AdapterError(
            f"{directory / MAPPER_CONFIG} says hidden_dim {shown(hidden)}, the mapper has {mapper.hidden_bias.size}"
        )
    return mapper


def write_mapper(directory: Path, mapper: Mapper) -> None:
    """Write cache_mapper.pt and cache_mapper_config.json."""
    tensors: dict[str, HostArray] = {theirs: np.asarray(getattr(mapper, ours)).T for theirs, ours in _NAMES.items()}
    write_torch_file(directory / MAPPER, tensors)
    described = {"hidden_dim": int(mapper.hidden_bias.size), "metadata_features": "both"}
    write_json(directory / MAPPER_CONFIG, described)


def check_base(directory: Path, base: Base) -> None:
    """Refuse a base other than the one whose fingerprint was noted; the published code notes none."""
    noted = _meta(directory).get("base_fingerprint")
    if noted is not None and not base.identity.matches(noted):
        told = base.identity.told_from(noted, "another base model", base.name)
        raise ModelMismatchError(f"{directory} was made for {told}")


def noted_vocabulary(directory: Path) -> int | None:
    """Return the cut vocabulary that was noted, which a mapper alone has no rows to tell.

    Raises `AdapterError` for what is no number of tokens.
    """
    noted = _meta(directory).get("vocab_size")
    if noted is not None and (type(noted) is not int or noted < 1):
        raise AdapterError(f"{directory / META}: vocab_size must be a positive whole number, not {shown(noted)}")
    return noted


def noted_sink(directory: Path, base: Base) -> tuple[int, ...]:
    """Return the sink that was noted; the published system knows none.  Raises `AdapterError` for what is no sink."""
    return checked_sink(_meta(directory).get("sink", []), base, directory / META)


def noted_template(directory: Path) -> TemplateVariables | None:
    """Return the template variables that were noted; None: nothing is known of them.  Raises `AdapterError`."""
    noted = _meta(directory).get("template")
    return None if noted is None else checked_variables(noted, f"template of {directory / META}", AdapterError)


def training_summary(directory: Path) -> dict[str, Any]:
    """Return what the checkpoint says of its training; empty: nothing.

    Raises `AdapterError` for a training that is no object.
    """
    meta = _meta(directory)
    known = meta.get("training", {key: meta[key] for key in ("global_step", "epoch", "metrics") if key in meta})
    if known is not None and not isinstance(known, dict):
        raise AdapterError(f"{directory / META}: training must be an object, not {shown(known)}")
    return dict(known or {})


def _meta(directory: Path) -> dict[str, Any]:
    return _json_if_there(directory / META)


def _json_if_there(file: Path) -> dict[str, Any]:
    # A summary of the training may tell of a loss that was no number.
    return read_json(file, finite=False) if _is_there(file) else {}


def write_release(directory: Path, adapter: Adapter, base: Base, training: Mapping[str, Any]) -> None:
    """Write an adapter into an empty directory so that the published code, PEFT and `load_adapter` read it."""
    if adapter.mapper is not None:
        write_mapper(directory, adapter.mapper)
    if adapter.lora is not None:
        vocabulary = adapter.vocabulary or base.config.vocab_size
        peft.write_peft(directory / LORA, adapter.lora, base, vocabulary, base.name)
    steps = training.get("steps", training.get("global_step"))
    meta = {"global_step": steps, "base_fingerprint": base.fingerprint, "training": dict(training)}
    meta |= {"vocab_size": adapter.vocabulary, "sink": list(adapter.sink) or None, "template": adapter.template}
    write_json(directory / META, {key: value for key, value in meta.items() if value is not None})
    files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    sums = {str(path): hashlib.sha256((directory / path).read_bytes()).hexdigest() for path in files}
    (directory / CARD).write_text(model_card(adapter, base, training, sums), encoding="utf-8")


def model_card(adapter: Adapter, base: Base, training: Mapping[str, Any], sums: Mapping[str, str]) -> str:
    """Return README.md of an adapter: what it is, how it is used, how it was trained, and checksums of its files."""
    lora, mapper = adapter.lora, adapter.mapper
    parts = [] if mapper is None else [f"a cache mapper with {mapper.hidden_bias.size} hidden units (`{MAPPER}`)"]
    if lora is not None:
        parts.append(f"a LoRA of rank {lora.rank} on {', '.join(sorted(lora.down))} (`{LORA}/`)")
    if adapter.sink:
        parts.append(f"a sink of {len(adapter.sink)} tokens, which psynth_jax alone reads before all branches (`{META}`)")
    if adapter.vocabulary is not None:
        parts.append(f"trained with the first {adapter.vocabulary:,} of {base.config.vocab_size:,} tokens")
    config = training.get("config")
    config = config if isinstance(config, dict) else {}
    facts = {key: value for key, value in training.items() if not isinstance(value, dict | list)}
    facts |= {key: config[key] for key in ("seed", "reads") if key in config}
    rows = [f"| {name} | {' '.join(str(value).split())} |" for name, value in facts.items()]
    return "\n".join(
        [
            "---",
            "library_name: psynth_jax",
            *([f"base_model: {base.name}"] if is_hub_id(base.name) else []),
            "---",
            "",
            f"# Parallel-Synthesis adapter for {base.name}",
            "",
            "The synthesizer of a model whose parallel workers' KV caches are read directly (arXiv 2606.14672): "
            + "; ".join(parts or ["nothing: the base itself"])
            + ".",
            "",
            *([_RESIZE.format(adapter.vocabulary), ""] if adapter.vocabulary is not None else []),
            "```python",
            "import psynth_jax as ps",
            "",
            f'synth = ps.ParallelSynthesis(ps.load_model("{base.name}"), adapter="PATH OR HUB ID OF THIS DIRECTORY")',
            "```",
            "",
            *(["## Training", "", "| | |", "|---|---|", *rows, ""] if rows else []),
            "## Checksums",
            "",
            "| file | sha256 |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in sums.items()),
            "",
        ]
    )
