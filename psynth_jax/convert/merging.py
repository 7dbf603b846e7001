"""Two adapters of one base -> one, as a weighted average.

What an adapter adds to a weight is its delta, down @ up * scale.  The average of two deltas has up to the sum of their
ranks; it is cut to a rank by the singular values, which is the nearest of that rank, and the error is told.  The published
system averages the factors instead, `(a1 + a2) / 2` with `(b1 + b2) / 2`: that is not the average of anything, but it is how
the published checkpoint was made, so it is here under its own name.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array, HostArray
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.adapter_numbers import refuse_not_finite, rounded
from psynth_jax.convert.progress import tell
from psynth_jax.convert.rules import FLOAT32, widest
from psynth_jax.errors import AdapterError, InputError
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from psynth_jax.template_variables import described

How = Literal["deltas", "factors"]
MapperOf = Literal["first", "second", "average"]
MOST_RANK = 1 << 16
_RESULT = "the average of the adapters"  # what a message says has numbers that are not finite


@dataclasses.dataclass(frozen=True)
class Merged:
    """An averaged adapter; error: what the cut to its rank lost, as a part of the averaged deltas' norm."""

    adapter: Adapter
    error: float


def merge_adapters(
    first: Adapter,
    second: Adapter,
    weight: float = 0.5,
    how: How = "deltas",
    rank: int | None = None,
    mapper: MapperOf = "average",
) -> Merged:
    """Average two adapters of the same base.

    Args:
      weight: of `first`, 0 to 1; `second` has the rest.
      how: "deltas": average what they add to the weights.  "factors": average down and up each by itself, as published.
      rank: of the result of "deltas"; None is the larger one of the two.
      mapper: whose mapper is taken; "average" averages its parameters.

    Raises:
      InputError: a weight, rank or choice that is none.
      AdapterError: the adapters cannot be averaged: other targets, vocabularies or sinks, numbers that are not finite or
        whose average is not, or, for "factors", other ranks or scales.
    """
    check_choices(weight, how, rank, mapper)
    for which, adapter in (("first", first), ("second", second)):
        _refuse_not_finite(which, adapter)
    if first.vocabulary != second.vocabulary:
        raise AdapterError(f"the adapters choose from {first.vocabulary} and {second.vocabulary} tokens")
    template = second.template if first.template is None else first.template
    if second.template is not None and template != second.template:
        raise AdapterError(
            f"the adapters were trained with {described(template or {})}, and with {described(second.template)}: "
            "average those trained with the same template variables"
        )
    if first.sink != second.sink:
        raise AdapterError(
            "the adapters read branches after different sinks: average those trained with the same trainable.sink"
        )
    if (first.lora is None) != (second.lora is None):
        raise AdapterError("only one of the adapters has a LoRA")
    lora, error = None, 0.0
    if first.lora is not None and second.lora is not None:
        if sorted(first.lora.down) != sorted(second.lora.down):
            raise AdapterError(f"the adapters change {sorted(first.lora.down)} and {sorted(second.lora.down)}")
        if how == "factors":
            lora = _of_factors(first.lora, second.lora, weight)
        else:
            lora, error = _of_deltas(first.lora, second.lora, weight, rank or max(first.lora.rank, second.lora.rank))
    merged = Adapter(lora, _mapper(first.mapper, second.mapper, weight, mapper), first.vocabulary, first.sink, template)
    return Merged(merged, error)


def check_choices(weight: float, how: How, rank: int | None, mapper: MapperOf) -> None:
    """Refuse what no two adapters can be merged with; see `merge_adapters`.  Raises `InputError`."""
    if not 0 <= weight <= 1:
        raise InputError(f"weight is {weight}; it must be from 0 to 1")
    for name, value, allowed in (("how", how, get_args(How)), ("mapper", mapper, get_args(MapperOf))):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    if rank is not None and (rank < 1 or how == "factors"):
        raise InputError("rank must be at least 1, and is for averages of deltas: factors keep theirs")
    if rank is not None and rank > MOST_RANK:
        raise InputError(f"rank is {rank}; it must be at most {MOST_RANK}")


def _refuse_not_finite(which: str, adapter: Adapter) -> None:
    """Refuse NaN and infinities, which an adapter that was made in memory may have."""
    for path, leaf in jax.tree.leaves_with_path((adapter.lora, adapter.mapper)):
        refuse_not_finite(f"the {which} adapter", jax.tree_util.keystr(path), np.asarray(leaf))


def _of_factors(first: Lora, second: Lora, weight: float) -> Lora:
    if (first.rank, float(first.scale)) != (second.rank, float(second.scale)):
        raise AdapterError(
            f"factors can be averaged only at the same rank and scale: {first.rank} and {second.rank}, "
            f"{float(first.scale)} and {float(second.scale)}"
        )
    down, up = {}, {}
    for target in first.down:
        down[target] = _average(f"down of {target}", first.down[target], second.down[target], weight)
        up[target] = _average(f"up of {target}", first.up[target], second.up[target], weight)
    return Lora(down, up, first.scale)


def _average(name: str, x: Array, y: Array, weight: float) -> Array:
    """Return the average in the wider one of the two dtypes."""
    one, other = np.asarray(x), np.asarray(y)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = weight * one.astype(np.float32) + (1 - weight) * other.astype(np.float32)
    refuse_not_finite(_RESULT, name, mean)
    return jnp.asarray(rounded(_RESULT, name, mean, widest((one.dtype, other.dtype))))


def _of_deltas(first: Lora, second: Lora, weight: float, rank: int) -> tuple[Lora, float]:
    """Average the deltas and cut them to a rank, layer by layer.

    Side by side, both adapters' factors are factors of the average: D = [d1 d2], U = [w1 u1; w2 u2].  With D = Q R and
    U' = P S, the singular values of D U are those of the small R S'.
    """
    down: dict[str, Array] = {}
    up: dict[str, Array] = {}
    lost = total = 0.0
    shares = (weight * float(first.scale), (1 - weight) * float(second.scale))
    for target in first.down:
        tell(f"averaging what the adapters add to {target}")
        left, right = (
            np.concatenate([_flat(lora, half, target) * np.float64(share) for lora, share in pairs], axis)
            for half, axis, pairs in (
                ("down", 2, ((first, 1.0), (second, 1.0))),
                ("up", 1, ((first, shares[0]), (second, shares[1]))),
            )
        )
        try:
            q, r = np.linalg.qr(left)
            p, s = np.linalg.qr(right.swapaxes(1, 2))
            u, values, v = np.linalg.svd(r @ s.swapaxes(1, 2))
        except np.linalg.LinAlgError as error:
            raise AdapterError(f"the average of the deltas of {target} has no singular values: {error}") from None
        kept = min(rank, values.shape[1])
        root = np.sqrt(values[:, :kept])
        made = ((q @ u[..., :kept]) * root[:, None, :], root[:, :, None] * (v[:, :kept] @ p.swapaxes(1, 2)))
        missing = rank - kept
        made = (np.pad(made[0], ((0, 0), (0, 0), (0, missing))), np.pad(made[1], ((0, 0), (0, missing), (0, 0))))
        down[target] = _shaped(f"down of {target}", made[0], (*np.shape(first.down[target])[:-1], rank))
        up[target] = _shaped(f"up of {target}", made[1], (len(made[1]), rank, *np.shape(first.up[target])[2:]))
        lost += float((values[:, kept:] ** 2).sum())
        total += float((values**2).sum())
    return Lora(down, up, jnp.float32(1)), (lost / total) ** 0.5 if total else 0.0


def _flat(lora: Lora, half: str, target: str) -> HostArray:
    """Return down as `[L, in, A]`, or up as `[L, A, out]`, float64."""
    factor = np.asarray(getattr(lora, half)[target], np.float64)
    shape = (len(factor), -1, lora.rank) if half == "down" else (len(factor), lora.rank, -1)
    return factor.reshape(shape)


def _shaped(name: str, values: HostArray, shape: tuple[int, ...]) -> Array:
    refuse_not_finite(_RESULT, name, values)
    return jnp.asarray(rounded(_RESULT, name, values.reshape(shape), FLOAT32))


def _mapper(first: Mapper | None, second: Mapper | None, weight: float, choice: MapperOf) -> Mapper | None:
    if choice != "average":
        return first if choice == "first" else second
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise AdapterError("only one of the adapters has a mapper: choose first or second")
    if first.hidden_bias.shape != second.hidden_bias.shape:
        raise AdapterError(f"mappers of {first.hidden_bias.size} and {second.hidden_bias.size} hidden units have no average")
    names = [field.name for field in dataclasses.fields(first)]
    averages = {name: _average(name, getattr(first, name), getattr(second, name), weight) for name in names}
    return Mapper(**averages)
