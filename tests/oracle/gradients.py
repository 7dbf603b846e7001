"""Gradients of the method as its definition says it, by torch's autograd: mapped caches in one, adapters added to weights.

Knows nothing of the package.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from tests.oracle.synthesis import PROJECTIONS, MapperParams, OracleBranch, OracleLora, branch_cache


def _mapper_scalars(mapper: dict[str, torch.Tensor], span: int, count: int, layer: int, layers: int) -> torch.Tensor:
    features = torch.tensor([np.log1p(span), np.log1p(count), layer / (layers - 1)], dtype=torch.float32)
    hidden = torch.nn.functional.silu(features @ mapper["hidden_kernel"] + mapper["hidden_bias"])
    raw = 0.1 * torch.tanh(hidden @ mapper["out_kernel"] + mapper["out_bias"])
    return raw + torch.tensor([1.0, 0.0, 1.0, 0.0])


def loss_gradients(
    model: PreTrainedModel,
    branches: Sequence[OracleBranch],
    prompt_ids: Sequence[int],
    target_ids: Sequence[int],
    mapper: MapperParams,
    lora: OracleLora,
) -> tuple[float, dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the summed cross-entropy of the target, and its gradients: of the mapper by name, of (A, B) by target."""
    maps = {name: torch.tensor(value, requires_grad=True) for name, value in mapper.items()}
    factors = {
        target: tuple(torch.tensor(half, requires_grad=True) for half in halves) for target, halves in lora.matrices.items()
    }
    layers = len(model.model.layers)
    weights = {}
    for target, (a, b) in factors.items():
        for index in range(layers):
            name = f"model.layers.{index}.{PROJECTIONS[target]}.weight"
            weights[name] = model.get_parameter(name).detach() + lora.scale * (a[index] @ b[index]).T

    cache = DynamicCache()
    for branch in branches:
        for index, (keys, values) in enumerate(branch_cache(model, branch, "exact")):
            s = _mapper_scalars(maps, len(branch.generated_ids), len(branches), index, layers)
            cache.update(keys * s[0] + s[1], values * s[2] + s[3], index)
    offset, past = max(len(branch.generated_ids) for branch in branches), cache.get_seq_length()
    ids = [*prompt_ids, *target_ids[:-1]]
    mask = torch.full((len(ids), past + len(ids)), torch.finfo(torch.float32).min).triu(past + 1)
    arguments = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": mask[None, None],
        "position_ids": torch.arange(offset, offset + len(ids))[None],
        "use_cache": True,
        "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache,
    }
    logits = torch.func.functional_call(model, weights, (), arguments).logits[0, len(prompt_ids) - 1 :]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(list(target_ids)), reduction="sum")
    loss.backward()
    return (
        float(loss.detach()),
        {name: value.grad.numpy() for name, value in maps.items()},
        {target: (a.grad.numpy(), b.grad.numpy()) for target, (a, b) in factors.items()},
    )
