"""The published way to read branches, in torch: rotate, map, concatenate, then prefill the prompt.

    cached keys of a branch -> turned back by shift ->  aK k + bK --+
    cached values           ------------------------->  aV v + bV --+-> one DynamicCache -> prompt

Every key and value is rewritten and copied for every question (Parallel-Synthesis, arXiv
2606.14672).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from psynth_jax.bench.timing import timed
from psynth_jax.mapper import IDENTITY


@dataclasses.dataclass(frozen=True)
class TorchBranch:
    """A branch as it lies in its worker's cache.

    layers: per layer keys and values `[1, K, S, H]` of the branch's tokens, keys rotated at the
    worker's positions.  shift: positions by which they are turned back.
    """

    layers: list[tuple[Any, Any]]
    shift: int

    @property
    def length(self) -> int:
        """How many tokens it has, and so its span."""
        return int(self.layers[0][0].shape[2])


def encode(model: Any, tokens: Sequence[int], prefix: Sequence[int] = ()) -> TorchBranch:
    """Run a text behind its prefix through the model and keep the text's part of the cache."""
    import torch

    ids = torch.tensor([[*prefix, *tokens]], device=model.device)
    with torch.inference_mode():
        cache = model.model(input_ids=ids, use_cache=True).past_key_values
    first = len(prefix)
    layers = []
    for layer in cache.layers:
        layers.append((layer.keys[:, :, first:].clone(), layer.values[:, :, first:].clone()))
    return TorchBranch(layers, first)


def context(model: Any, branches: Sequence[TorchBranch], scalars: Any) -> Any:
    """Return a DynamicCache that holds all branches, rotated and mapped, one after another.

    scalars: `[L][W]` of (aK, bK, aV, bV).
    """
    import torch
    import transformers

    cache = transformers.DynamicCache()
    with torch.inference_mode():
        for index in range(len(branches[0].layers)):
            frequencies = frequencies_of(model, index)
            keys, values = [], []
            for branch, (key_scale, key_bias, value_scale, value_bias) in zip(
                branches,
                scalars[index],
                strict=True,
            ):
                k, v = branch.layers[index]
                keys.append(key_scale * _turned_back(k, branch.shift * frequencies) + key_bias)
                values.append(value_scale * v + value_bias)
            cache.update(torch.cat(keys, dim=2), torch.cat(values, dim=2), index)
    return cache


def _turned_back(keys: Any, angle: Any) -> Any:
    """Rotate keys `[1, K, S, H]` back by an angle per plane `[H/2]`, in float32."""
    import torch

    cos, sin = torch.cos(angle), torch.sin(angle)
    a, b = keys.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1).to(keys.dtype)


def frequencies_of(model: Any, layer: int) -> Any:
    """Return the rotary frequencies of a layer, `[H/2]`; models with local layers have two sets."""
    rotary = model.model.rotary_emb
    if hasattr(rotary, "inv_freq"):
        return rotary.inv_freq
    return getattr(rotary, f"{model.config.layer_types[layer]}_inv_freq")


def past(decoder: Any, cache: Any) -> dict[str, Any]:
    """Return the arguments that make a decoder read a cache, named as transformers names them."""
    if "cache" in inspect.signature(decoder.forward).parameters:  # from transformers 5.24 on
        return {"cache": cache, "use_cache": True}
    return {"past_key_values": cache, "use_cache": True}


def read(model: Any, prompt: Sequence[int], cache: Any, first_position: int) -> Any:
    """Prefill a prompt behind a cache; return the logits `[V]` of its last token."""
    import torch

    ids = torch.tensor([list(prompt)], device=model.device)
    positions = torch.arange(first_position, first_position + len(prompt), device=model.device)
    with torch.inference_mode():
        arguments = past(model.model, cache)
        found = model(ids, position_ids=positions[None], logits_to_keep=1, **arguments)
    return found.logits[0, -1]


def first_token(
    model: Any, prompt: Sequence[int], branches: Sequence[TorchBranch], scalars: Any = None
) -> Callable[[], float]:
    """Return a measure: from cached branches to the first token.

    scalars: see `context`; None is a mapper that changes nothing.
    """
    if scalars is None:
        scalars = [[IDENTITY] * len(branches) for _ in branches[0].layers]
    offset = max(branch.length for branch in branches)

    def answer() -> None:
        cache = context(model, branches, scalars)
        read(model, prompt, cache, offset).argmax(-1).tolist()

    return timed(answer)
