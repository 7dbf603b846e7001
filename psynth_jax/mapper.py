"""The cache mapper: a tiny network that says, per layer and branch, how to scale and shift cached keys and values.

    features = [log1p(span), log1p(valid branches), l / (L - 1)] -> Dense 32 -> SiLU -> Dense 4 = (r0, r1, r2, r3)
    K <- (1 + 0.1 tanh r0) K + 0.1 tanh r1        V <- (1 + 0.1 tanh r2) V + 0.1 tanh r3

K after re-encoding.  The last layer starts at zero, so a new mapper is the identity.  float32 always: in bfloat16 only 40
values exist between 0.9 and 1.1.  (Parallel-Synthesis, arXiv 2606.14672.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array, MapperScalars
from psynth_jax.errors import AdapterError, listing, shown
from psynth_jax.foreign import reason

FEATURES = ("log1p_span", "log1p_branches", "relative_layer")
IDENTITY = (1.0, 0.0, 1.0, 0.0)
HIDDEN = 32
REACH = 0.1  # the furthest a scalar can be from the identity


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mapper:
    """hidden_kernel `[3, 32]`, hidden_bias `[32]`, out_kernel `[32, 4]`, out_bias `[4]`; float32."""

    hidden_kernel: Array
    hidden_bias: Array
    out_kernel: Array
    out_bias: Array

    @classmethod
    def initialise(cls, key: Array, hidden: int = HIDDEN) -> Self:
        """Return a mapper that is the identity until it is trained."""
        kernel = jax.random.normal(key, (len(FEATURES), hidden), jnp.float32) / len(FEATURES) ** 0.5
        return cls(kernel, jnp.zeros(hidden), jnp.zeros((hidden, len(IDENTITY))), jnp.zeros(len(IDENTITY)))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Take the four named arrays.

        Raises `AdapterError` listing every missing, extra or misshaped one, and naming one that holds no finite numbers.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        given: object = arrays
        if not isinstance(given, Mapping):
            raise AdapterError(f"mapper arrays must be a mapping with {', '.join(names)}, not {shown(given)}")
        found = {name: _numbers(name, value) for name, value in arrays.items()}
        bias_shape = found["hidden_bias"].shape if "hidden_bias" in found else ()
        hidden = bias_shape[0] if len(bias_shape) == 1 else HIDDEN
        shapes = dict(zip(names, [(len(FEATURES), hidden), (hidden,), (hidden, 4), (4,)], strict=True))
        wrong = [f"missing {name}" for name in names if name not in found]
        wrong += [f"extra {name!s:.60}" for name in found if name not in shapes]
        for name, shape in shapes.items():
            if name in found and found[name].shape != shape:
                wrong.append(f"{name} has shape {list(found[name].shape)}, expected {list(shape)}")
        if wrong:
            raise AdapterError(f"mapper arrays are not usable: {listing(wrong)}")
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise AdapterError(f"mapper arrays are not usable: {name} has numbers that are not finite")
        return cls(**{name: jnp.asarray(found[name]) for name in names})


def _numbers(name: object, value: object) -> np.ndarray:
    """Return what a user gives for an array, as float32; infinite is what float32 cannot hold."""
    try:
        array = np.asarray(value)
        if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
            raise ValueError(f"it holds {array.dtype}")
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise AdapterError(f"mapper arrays are not usable: {shown(name)} is no array of numbers: {reason(error)}") from None


def mapper_scalars(mapper: Mapper | None, span: Array, valid: Array, layers: int) -> MapperScalars:
    """Return (aK, bK, aV, bV) `[L, B, W, 4]` float32.

    Args:
      mapper: None is the identity.
      span: `[B, W]` positions that each branch occupies.
      valid: `[B, W]` bool; only valid branches are counted, an invalid one gets scalars that nothing reads.
      layers: L.
    """
    if mapper is None:
        return jnp.broadcast_to(jnp.array(IDENTITY, jnp.float32), (layers, *span.shape, 4))
    shape = (layers, *span.shape)
    branches = jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    features = [
        jnp.broadcast_to(jnp.log1p(jnp.maximum(span, 1).astype(jnp.float32)), shape),
        jnp.broadcast_to(jnp.log1p(branches.astype(jnp.float32)), shape),
        jnp.broadcast_to((jnp.arange(layers) / max(layers - 1, 1))[:, None, None], shape),
    ]
    x = jnp.stack(features, axis=-1).astype(jnp.float32)
    hidden = jax.nn.silu(jnp.matmul(x, mapper.hidden_kernel, precision="highest") + mapper.hidden_bias)
    raw = jnp.matmul(hidden, mapper.out_kernel, precision="highest") + mapper.out_bias
    return jnp.array(IDENTITY, jnp.float32) + REACH * jnp.tanh(raw)
