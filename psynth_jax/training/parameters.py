"""What a run trains: fresh, or from an adapter that exists; and what its teacher has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.adapters import load_adapter
from psynth_jax.errors import ConfigError
from psynth_jax.mapper import Mapper
from psynth_jax.model import Model
from psynth_jax.nn.adapter import Lora, targets_of
from psynth_jax.training.config import Trainable, TrainConfig
from psynth_jax.training.step import Parameters


def initial_parameters(config: Trainable, model: Model, seed: int) -> Parameters:
    """Return the parameters that a run starts from, on the host: what is fresh changes nothing by itself.

    A mapper, a LoRA or a target of it that the adapter to start from lacks is fresh: so branches go on from a LoRA that was
    trained on text, and the MLP from one that was on attention alone.

    Raises `ConfigError` when that adapter has another form than the config says, a part that the config does not train, or a
    sink that the config gives up, and for targets that the model does not have.
    """
    check_targets(config, model.config)
    mapper_key, lora_key = jax.random.split(jax.random.key(seed))
    mapper = Mapper.initialise(mapper_key, config.mapper_hidden) if config.mapper else None
    lora = Lora.initialise(model.config, config.rank, config.alpha, lora_key, config.targets) if config.rank else None
    fresh = Parameters(mapper, lora.down if lora else {}, lora.up if lora else {})
    if config.start is None:
        return jax.tree.map(np.asarray, fresh)
    found = load_adapter(config.start, model)
    if found.vocabulary is not None:
        raise ConfigError(
            f"{config.start} writes only {found.vocabulary} tokens: training on from a cut vocabulary is not supported"
        )
    if found.sink and not config.sink:
        raise ConfigError(f"{config.start} reads branches behind a sink, the config has none: set trainable.sink=true")
    if differences := list(_differences(config, found, lora)):
        raise ConfigError(f"{config.start} differs from the config's `trainable`: it has {'; '.join(differences)}")
    check_finite((found.mapper, found.lora), config.start)
    known = dataclasses.replace(fresh, mapper=found.mapper or fresh.mapper)
    if found.lora is not None:
        known = dataclasses.replace(known, down=fresh.down | found.lora.down, up=fresh.up | found.lora.up)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), known)  # an adapter may be kept in bfloat16


def check_finite(tree: Any, name: str) -> None:
    """Raise `ConfigError` for an array with infinities or NaN: they would look like a learning rate that is too large."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ConfigError(f"{name} has numbers that are not finite, in {where}")


def not_finite(arrays: Mapping[str, Array]) -> list[str]:
    """Return the names of arrays on devices, of all processes, that have infinities or NaN."""
    whole = jax.jit(lambda x: jnp.isfinite(x).all())
    return [name for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating) and not whole(array)]


def check_targets(config: Trainable, model: DecoderConfig) -> None:
    """Raise `ConfigError` for targets that a model does not have."""
    there = targets_of(model)
    if config.rank and (beyond := [target for target in config.targets if target not in there]):
        raise ConfigError(f"trainable.targets: a {model.family} has no {', '.join(beyond)}; it has {', '.join(there)}")


def _differences(config: Trainable, found: Adapter, lora: Lora | None) -> Iterator[str]:
    """Say what an adapter has that the config says otherwise."""
    hidden = None if found.mapper is None else found.mapper.hidden_bias.size
    if hidden is not None and not config.mapper:
        yield "a mapper, the config trains none"
    elif hidden not in (None, config.mapper_hidden):
        yield f"a mapper of {hidden} hidden units, the config of {config.mapper_hidden}"
    if found.lora is None:
        return
    if lora is None:
        yield "a LoRA, the config trains none"
        return
    if found.lora.rank != lora.rank:
        yield f"a LoRA of rank {found.lora.rank}, the config of {lora.rank}"
    elif float(found.lora.scale) != float(lora.scale):
        yield f"alpha / rank = {float(found.lora.scale)}, the config {float(lora.scale)}"
    if beyond := sorted({*found.lora.down} - {*lora.down}):
        yield f"a LoRA on {', '.join(beyond)} too"


def teacher_of(config: TrainConfig, model: Model) -> tuple[Lora | None, str | None]:
    """Return the LoRA of the run's teacher, on the devices of the model, and its digest; None: the teacher is the base.

    Raises `ConfigError` for an adapter without a LoRA, and what `load_adapter` raises.
    """
    if config.teacher is None:
        return None, None
    found = load_adapter(config.teacher, model)
    if found.vocabulary is not None:
        raise ConfigError(
            f"the teacher {config.teacher} writes only {found.vocabulary} tokens: distillation is over all "
            f"{model.config.vocab_size} of {model.name}"
        )
    lora = found.lora
    if lora is None:
        raise ConfigError(f"the teacher {config.teacher} has no LoRA: it would be the base, leave it out")
    check_finite(lora, f"the teacher {config.teacher}")
    digest = Adapter(lora, None).digest
    return (lora if model.mesh is None else lora.on(model.mesh, model.config)), digest
