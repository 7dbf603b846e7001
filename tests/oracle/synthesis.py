"""The method as its definition says it: rotate, map and concatenate the branches' caches, then read on with a plain model.

Everything that the package avoids is done here on purpose: each branch is run alone, its keys and values are rewritten and
copied into one long cache, and adapters are added to the weights.  torch on CPU, float32; knows nothing of the package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

Positions = Literal["exact", "reference_live"]
MapperParams = Mapping[str, np.ndarray]
LayerCache = list[tuple[torch.Tensor, torch.Tensor]]  # per layer: keys, values, each [1, K, S, H]

MAPPER_HIDDEN = 32
PROJECTIONS = {x: f"self_attn.{x}_proj" for x in "qkvo"} | {x: f"mlp.{x}_proj" for x in ("gate", "up", "down")}


@dataclasses.dataclass(frozen=True)
class OracleBranch:
    """What one worker read and wrote.  Without a prompt it is a fixed text."""

    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]


@dataclasses.dataclass(frozen=True)
class OracleLora:
    """Low-rank updates of the synthesizer: target -> (A `[L, in, A]`, B `[L, A, out]`), times `scale` (alpha / rank)."""

    matrices: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scale: float


def random_mapper(seed: int) -> dict[str, np.ndarray]:
    """Draw mapper parameters whose four scalars are far from the identity and differ between layers and spans."""
    rng = np.random.default_rng(seed)
    hidden = MAPPER_HIDDEN
    draws = {
        "hidden_kernel": rng.standard_normal((3, hidden)),
        "hidden_bias": rng.standard_normal(hidden),
        "out_kernel": 0.12 * rng.standard_normal((hidden, 4)),  # larger ones saturate tanh: all branches look alike
        "out_bias": 0.5 * rng.standard_normal(4),
    }
    return {name: values.astype(np.float32) for name, values in draws.items()}


def projections_of(model: PreTrainedModel) -> list[str]:
    """Return the targets that a model has: a mixture of experts has none on its MLP."""
    named = dict(model.model.layers[0].named_modules())
    return [target for target, module in PROJECTIONS.items() if module in named]


def random_lora(
    model: PreTrainedModel, seed: int, rank: int, *, targets: Iterable[str] | None = None, alpha: float = 32.0
) -> OracleLora:
    """Draw an adapter whose update is about a third as large as the weight that it changes; None: of all that there are."""
    rng = np.random.default_rng(seed)
    layers = model.model.layers
    scale = alpha / rank
    matrices = {}
    for target in projections_of(model) if targets is None else targets:
        width_out, width_in = layers[0].get_submodule(PROJECTIONS[target]).weight.shape
        a = rng.standard_normal((len(layers), width_in, rank)) / np.sqrt(width_in)
        b = rng.standard_normal((len(layers), rank, width_out)) / (3 * scale * np.sqrt(rank))
        matrices[target] = (a.astype(np.float32), b.astype(np.float32))
    return OracleLora(matrices, scale)


@contextlib.contextmanager
def applied(model: PreTrainedModel, lora: OracleLora | None) -> Iterator[None]:
    """Add the adapter to the model's weights inside the block, and put the very same weights back after it."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    if lora is None:
        yield
        return
    try:
        with torch.no_grad():
            for target, (a, b) in lora.matrices.items():
                for index, layer in enumerate(model.model.layers):
                    weight = layer.get_submodule(PROJECTIONS[target]).weight
                    kept.append((weight, weight.clone()))
                    weight += lora.scale * torch.from_numpy(a[index] @ b[index]).T
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)


def read(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    cache: DynamicCache,
    first_position: int,
    masked: Sequence[int] = (),
) -> torch.Tensor:
    """Append tokens to `cache`, each seeing all that is in it and the tokens before itself; return logits `[T, V]`.

    masked: places in the cache that none of them sees.
    """
    past, count = cache.get_seq_length(), len(token_ids)
    hidden = torch.full((count, past + count), torch.finfo(torch.float32).min).triu(past + 1)
    hidden[:, list(masked)] = torch.finfo(torch.float32).min
    mask: Any = hidden[None, None]
    if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
        # In plain text the distance of two tokens is that of their places.  Branches are only read within the window.
        window = model.config.sliding_window if first_position == past else past + count
        far = torch.full_like(hidden, torch.finfo(torch.float32).min).tril(past - window)
        mask = {"full_attention": mask, "sliding_attention": torch.minimum(hidden, far)[None, None]}
    positions = torch.arange(first_position, first_position + count)
    with torch.no_grad():  # the argument is called `cache` from transformers 5.24 on
        output = model(
            input_ids=torch.tensor([list(token_ids)]),
            attention_mask=mask,
            position_ids=positions[None],
            use_cache=True,
            **{"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache},
        )
    return output.logits[0]


def unrotate(keys: torch.Tensor, frequencies: torch.Tensor, shift: int) -> torch.Tensor:
    """Turn keys `[1, K, S, H]` back by `shift` positions: a pure rotation, whatever factor they already carry."""
    angle = shift * frequencies.double()
    cos, sin = torch.cos(angle), torch.sin(angle)
    first, second = keys.double().chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1).float()


def branch_cache(model: PreTrainedModel, branch: OracleBranch, positions: Positions) -> LayerCache:
    """Run one worker's tokens through the base model and return the re-encoded part that the synthesizer reads.

    tokens            p0 ..  p(P-1)   g0 ..  g(G-2)  g(G-1)
    exact                             0  ..   G-2     G-1     span G
    reference_live            -1      0  ..   G-2             span G, the last token is missing
    """
    prompt, generated = len(branch.prompt_ids), len(branch.generated_ids)
    if not generated:
        raise ValueError("a branch has at least one token")
    if positions == "reference_live" and not prompt:
        raise ValueError("reference_live keeps the last prompt token, so there has to be one")
    first = prompt if positions == "exact" else prompt - 1
    cache = DynamicCache()
    read(model, [*branch.prompt_ids, *branch.generated_ids], cache, 0)
    return [
        (
            unrotate(layer.keys[:, :, first : first + generated], frequencies_of(model, index), prompt),
            layer.values[:, :, first : first + generated].clone(),
        )
        for index, layer in enumerate(cache.layers)
    ]


def frequencies_of(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """Return the rotary frequencies of a layer, `[H/2]`."""
    rotary = model.model.rotary_emb
    return rotary.inv_freq if hasattr(rotary, "inv_freq") else getattr(rotary, f"{model.config.layer_types[layer]}_inv_freq")


def mapper_scalars(mapper: MapperParams, span: int, branch_count: int, layer: int, layers: int) -> np.ndarray:
    """Return aK, bK, aV, bV of one branch in one layer, `[4]` float32."""
    depth = layer / (layers - 1) if layers > 1 else 0.0
    features = np.array([np.log1p(span), np.log1p(branch_count), depth], np.float32)
    hidden = features @ mapper["hidden_kernel"] + mapper["hidden_bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    raw = 0.1 * np.tanh(hidden @ mapper["out_kernel"] + mapper["out_bias"])
    return (raw + np.array([1, 0, 1, 0])).astype(np.float32)


def context(
    model: PreTrainedModel, branches: Sequence[OracleBranch], positions: Positions, mapper: MapperParams | None
) -> tuple[DynamicCache, int]:
    """Build the cache that holds all branches one after another, and the position at which the synthesizer starts."""
    cache = DynamicCache()
    for branch in branches:
        read_back = branch_cache(model, branch, positions)
        for index, (keys, values) in enumerate(read_back):
            if mapper is not None:
                scalars = mapper_scalars(mapper, len(branch.generated_ids), len(branches), index, len(read_back))
                key_scale, key_bias, value_scale, value_bias = (float(s) for s in scalars)
                keys, values = keys * key_scale + key_bias, values * value_scale + value_bias
            cache.update(keys, values, index)
    return cache, max((len(branch.generated_ids) for branch in branches), default=0)


def branch_logprobs(
    model: PreTrainedModel,
    branches: Sequence[OracleBranch],
    prompt_ids: Sequence[int],
    target_ids: Sequence[int],
    *,
    positions: Positions = "exact",
    mapper: MapperParams | None = None,
    lora: OracleLora | None = None,
) -> np.ndarray:
    """Return log-probabilities of the target after the prompt, teacher forced, `[len(target_ids)]` float32."""
    cache, offset = context(model, branches, positions, mapper)
    with applied(model, lora):
        logits = read(model, [*prompt_ids, *target_ids], cache, offset)
    return _of_target(logits, len(prompt_ids), target_ids)


def recomputed_logprobs(
    model: PreTrainedModel,
    branches: Sequence[OracleBranch],
    prompt_ids: Sequence[int],
    target_ids: Sequence[int],
    recompute: int,
    *,
    mapper: MapperParams | None = None,
    lora: OracleLora | None = None,
) -> np.ndarray:
    """Return what `branch_logprobs` does, the first `recompute` tokens of every branch encoded again behind all of them.

    All old entries stay in the cache; those of these tokens are masked, for everything that is read after it.
    """
    cache, offset = context(model, branches, "exact", mapper)
    again: list[int] = []
    masked: list[int] = []
    begin = 0
    for branch in branches:
        first = branch.generated_ids[:recompute]
        again += first
        masked += range(begin, begin + len(first))
        begin += len(branch.generated_ids)
    with applied(model, lora):
        logits = read(model, [*again, *prompt_ids, *target_ids], cache, offset, masked)
    return _of_target(logits, len(again) + len(prompt_ids), target_ids)


def greedy(
    model: PreTrainedModel,
    branches: Sequence[OracleBranch],
    prompt_ids: Sequence[int],
    count: int,
    *,
    positions: Positions = "exact",
    mapper: MapperParams | None = None,
    lora: OracleLora | None = None,
) -> tuple[list[int], list[float]]:
    """Decode `count` tokens, one at a time; also return by how much each was more likely than the runner-up (logits)."""
    cache, position = context(model, branches, positions, mapper)
    token_ids: list[int] = []
    margins: list[float] = []
    unread = list(prompt_ids)
    with applied(model, lora):
        while len(token_ids) < count:
            top = torch.topk(read(model, unread, cache, position)[-1], 2)
            margins.append(float(top.values[0] - top.values[1]))
            token_ids.append(int(top.indices[0]))
            position += len(unread)
            unread = token_ids[-1:]
    return token_ids, margins


def greedy_tokens(
    model: PreTrainedModel,
    branches: Sequence[OracleBranch],
    prompt_ids: Sequence[int],
    count: int,
    *,
    positions: Positions = "exact",
    mapper: MapperParams | None = None,
    lora: OracleLora | None = None,
) -> list[int]:
    """Return the `count` tokens that greedy decoding gives."""
    return greedy(model, branches, prompt_ids, count, positions=positions, mapper=mapper, lora=lora)[0]


def text_logprobs(model: PreTrainedModel, prompt_ids: Sequence[int], target_ids: Sequence[int]) -> np.ndarray:
    """Return log-probabilities of the target after the prompt read alone: one plain forward pass, no cache, no mask."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt_ids, *target_ids]]), use_cache=False).logits[0]
    return _of_target(logits, len(prompt_ids), target_ids)


def _of_target(logits: torch.Tensor, prompt: int, target_ids: Sequence[int]) -> np.ndarray:
    """Pick the target's log-probabilities out of `[prompt + target, V]` logits."""
    logprobs = torch.log_softmax(logits[prompt - 1 : prompt - 1 + len(target_ids)].float(), dim=-1)
    return logprobs[torch.arange(len(target_ids)), torch.tensor(list(target_ids))].numpy()
