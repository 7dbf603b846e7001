"""An implementation's `attend` as the two public operations: for kernels that run here in interpret mode only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from psynth_jax.ops.partial import Partial, normalised


def whole(attend: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """See `branch_attention`."""
    return lambda q, *arguments: attend(q, *arguments, None, q.dtype, **options)[0]


def part(attend: Callable[..., Any], **options: Any) -> Callable[..., Partial]:
    """See `branch_attention_partial`; the last argument is `with_own`."""
    return lambda *arguments: normalised(*attend(*arguments, jnp.float32, **options))
