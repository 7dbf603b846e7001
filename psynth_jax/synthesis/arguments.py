"""What a `ParallelSynthesis` is made of and called with, checked: model, adapter, template variables, shapes, seeds."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from jax.sharding import Mesh

from psynth_jax.branch import PositionMode
from psynth_jax.cache import CACHE_DTYPES
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.adapters import load_adapter
from psynth_jax.errors import AdapterError, InputError, listing, shown
from psynth_jax.model import Model
from psynth_jax.nn.adapter import Lora
from psynth_jax.synthesis.gate import Gate
from psynth_jax.synthesis.outputs import OnToken, Report, StreamedToken
from psynth_jax.synthesis.sampling import checked_seed, is_whole
from psynth_jax.template_variables import TemplateVariables, checked_variables, described


def check_arguments(model: object, positions: object, cache_dtype: object, mesh: object, pool_tokens: object) -> None:
    """Raise `InputError` for an argument of the wrong type, or none of its choices, saying what is right."""
    if not isinstance(model, Model):
        how = f": ParallelSynthesis(load_model({shown(model)}))" if isinstance(model, str | Path) else ""
        raise InputError(f"model is {shown(model)}; it must be what load_model returns{how}")
    choices = (("positions", positions, get_args(PositionMode)), ("cache_dtype", cache_dtype, (None, *CACHE_DTYPES)))
    for name, value, allowed in choices:
        if not isinstance(value, str | None) or value not in allowed:
            raise InputError(f"{name} is {shown(value)}; it must be one of {', '.join(map(str, allowed))}")
    if pool_tokens is not None and (not is_whole(pool_tokens) or int(pool_tokens) < 1):  # type: ignore[call-overload]
        raise InputError(f"pool_tokens is {shown(pool_tokens)}; it must be a whole number of at least 1, or None")
    if not isinstance(mesh, Mesh | None):
        raise InputError(f"mesh is {shown(mesh)}; it must be what make_mesh returns, as in make_mesh('branch=2'), or None")


def checked_adapter(adapter: object, model: Model) -> Adapter | None:
    """Return an adapter, read from its directory if need be.  Raises `AdapterError` for one that does not fit."""
    if isinstance(adapter, str | Path):
        adapter = load_adapter(adapter, model)
    if isinstance(adapter, Lora):
        adapter = Adapter(lora=adapter, mapper=None)
    if adapter is None:
        return None
    if not isinstance(adapter, Adapter):
        raise AdapterError(f"an adapter is a directory, a hub id, an Adapter or a Lora, not {shown(adapter)}")
    if adapter.lora is not None and (wrong := adapter.lora.misfits(model.config)):
        raise AdapterError(f"the adapter does not fit {model.name}: {listing(wrong)}")
    return adapter


def with_template(model: Model, given: object, noted: TemplateVariables | None) -> Model:
    """Return the model with the template variables that are given, or those that its adapter notes.

    Warns where an adapter is used with other variables than it was trained with.  Raises as `Tokenizer.with_template`.
    """
    tokenizer = model.tokenizer
    variables = checked_variables(given) if given is not None else dict(noted or {})
    if tokenizer is None:
        if given is not None and variables:
            raise InputError(f"template is {shown(given)}, and {model.name} has no tokenizer that has a chat template")
        return model
    if given is None and not variables:
        variables = dict(tokenizer.template_variables)
    if noted is not None and variables != noted:
        warnings.warn(
            f"the adapter was trained with {described(noted)}, and is used with {described(variables)}: "
            "it is asked in other words than it knows",
            stacklevel=3,
        )
    if variables == tokenizer.template_variables:
        return model
    try:
        return dataclasses.replace(model, tokenizer=tokenizer.with_template(variables))
    except InputError as error:
        raise InputError(f"{model.name}: {error}") from None


def checked_gate(gate: object, model: Model, adapter: Callable[[], str]) -> Gate | None:
    """Return a gate, made of its threshold if need be.

    Args:
      gate: a `Gate`, a number, or None.
      model: whose answers it judges.
      adapter: tells the digest of the synthesizer's adapter.

    Raises:
      InputError: it is something else.
      ModelMismatchError: it was chosen for another model or adapter.
    """
    if gate is None:
        return None
    made = gate if isinstance(gate, Gate) else Gate(gate)  # type: ignore[arg-type]
    made.check(model.identity, adapter)
    return made


def reporter(on_token: OnToken, question: int) -> Report:
    """Return what tells `on_token` of the pieces of a question's answer."""
    return lambda piece: on_token(StreamedToken(piece, question, None))


def shaped_like(groups: list[list[Any]], batched: bool, given: Sequence[Any] | None, what: str) -> list[list[Any]]:
    """Return `given` grouped like `groups`; None everywhere when nothing is given."""
    if given is None:
        return [[None] * len(group) for group in groups]
    nested = given if batched else [given]
    counts = [len(group) for group in groups]
    if (
        not isinstance(nested, list | tuple)
        or not all(isinstance(group, list | tuple) for group in nested)
        or [len(group) for group in nested] != counts
    ):
        raise InputError(f"{what} must have {f'{counts} entries, by question' if batched else f'{counts[0]} entries'}")
    return [list(group) for group in nested]


def worker_seeds(seed: int | Sequence[Any], groups: list[list[Any]], batched: bool) -> list[list[tuple[int, int]]]:
    """Return each worker's (seed, number); a seed given for a worker alone does not depend on its number."""
    seeds: list[list[tuple[int, int]]] = []
    if isinstance(seed, list | tuple):
        for own in shaped_like(groups, batched, seed, "seed"):
            seeds.append([(checked_seed(value), 0) for value in own])
        return seeds
    one = checked_seed(seed)
    for group in groups:
        seeds.append([(one, index) for index in range(len(group))])
    return seeds
