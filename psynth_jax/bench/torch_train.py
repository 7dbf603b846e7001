"""The same training step in torch, transformers and PEFT, written twice: what a user would otherwise run.

    competent    all branches of a batch in one padded forward, logits at the targets only, one step a batch
    published    branches one by one, logits at every position, batch 1: a step for every example

Both start from the same weights, read caches that are rotated, mapped and concatenated, and train a mapper and an adapter.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from psynth_jax.bench.against_torch import load_torch
from psynth_jax.data.example import BranchTokens, Example
from psynth_jax.mapper import IDENTITY, REACH, Mapper

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


class TorchTrainer:
    """Frozen base, trainable adapter and mapper, AdamW.  Each loop returns the mean loss of the steps that it did."""

    def __init__(self, source: str, dtype: str, mapper: Mapper, rank: int, alpha: float, learning_rate: float):
        """Take a model as `psynth_jax.load_model` does; the adapter starts as PEFT starts one, without effect."""
        import peft
        import torch

        config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=PROJECTIONS)
        self._torch = torch
        self._peft = peft.get_peft_model(load_torch(source, dtype), config)
        self._causal = self._peft.base_model.model
        self._device = self._causal.device
        self._layers = self._causal.config.num_hidden_layers
        self._mapper = {
            field.name: torch.tensor(np.asarray(getattr(mapper, field.name)), device=self._device, requires_grad=True)
            for field in dataclasses.fields(mapper)
        }
        self._adapter = [value for value in self._peft.parameters() if value.requires_grad]
        self._optimizer = torch.optim.AdamW([*self._adapter, *self._mapper.values()], learning_rate, weight_decay=0.0)

    def competent(self, examples: Sequence[Example]) -> float:
        """Do one step on a batch."""
        torch = self._torch
        branches = [branch for example in examples for branch in example.branches]
        row = np.cumsum([0, *(len(example.branches) for example in examples)])
        cache, mask = self._context(
            self._encode(branches), [list(range(row[i], row[i + 1])) for i in range(len(examples))], branches
        )
        ids, own = self._padded([np.concatenate([each.prompt, each.target[:-1]]) for each in examples])
        offset = torch.tensor([max(len(b.kept) for b in each.branches) for each in examples], device=self._device)
        hidden = self._decoder(
            input_ids=ids,
            attention_mask=torch.cat([mask, own], dim=1),
            position_ids=offset[:, None] + torch.arange(ids.shape[1], device=self._device),
            **self._past(cache),
        ).last_hidden_state
        at = [(i, len(e.prompt) - 1 + t) for i, e in enumerate(examples) for t in range(len(e.target))]
        rows, places = torch.tensor(at, device=self._device).T
        targets = torch.tensor(np.concatenate([each.target for each in examples]), device=self._device).long()
        return self._step(self._causal.lm_head(hidden[rows, places]), targets)

    def published(self, examples: Sequence[Example]) -> float:
        """Do a step for every example."""
        torch, found = self._torch, 0.0
        for example in examples:
            cache = None
            for branch in example.branches:
                cache, _ = self._context(self._encode([branch]), [[0]], [branch], len(example.branches), cache)
            ids = torch.tensor(np.concatenate([example.prompt, example.target[:-1]]), device=self._device)[None].long()
            first = max(len(branch.kept) for branch in example.branches)
            positions = torch.arange(first, first + ids.shape[1], device=self._device)[None]
            logits = self._causal(input_ids=ids, position_ids=positions, **self._past(cache)).logits[0]
            labels = torch.full((ids.shape[1],), -100, device=self._device)
            labels[len(example.prompt) - 1 :] = torch.tensor(example.target, device=self._device)
            found += self._step(logits, labels) * len(example.target)
        return found / sum(len(example.target) for example in examples)

    @property
    def _decoder(self) -> Any:
        return self._causal.model

    def _past(self, cache: Any) -> dict[str, Any]:
        """Name the argument as this version of transformers does."""
        named = "cache" if "cache" in inspect.signature(self._decoder.forward).parameters else "past_key_values"
        return {named: cache, "use_cache": True}

    def _padded(self, sequences: Sequence[Any]) -> tuple[Any, Any]:
        """Return ids and mask `[rows, longest]`."""
        longest = max(map(len, sequences))
        ids, mask = np.zeros((2, len(sequences), longest), np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        return self._torch.tensor(ids, device=self._device), self._torch.tensor(mask, device=self._device)

    def _encode(self, branches: Sequence[BranchTokens]) -> list[tuple[Any, Any]]:
        """Return keys, turned back by each branch's prefix, and values of the base: a pair `[rows, K, S, H]` a layer."""
        torch = self._torch
        ids, mask = self._padded([np.concatenate([branch.prefix, branch.kept]) for branch in branches])
        with torch.no_grad(), self._peft.disable_adapter():
            cache = self._decoder(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
            shift = torch.tensor([float(len(branch.prefix)) for branch in branches], device=self._device)
            found = []
            for index, layer in enumerate(cache.layers):
                angle = shift[:, None, None, None] * self._frequencies(index)
                cos, sin = torch.cos(angle), torch.sin(angle)
                a, b = layer.keys.chunk(2, dim=-1)
                found.append((torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1).to(a.dtype), layer.values))
        return found

    def _frequencies(self, layer: int) -> Any:
        """Return the rotary frequencies of a layer, `[H/2]`; models with local layers have two sets."""
        rotary = self._decoder.rotary_emb
        if hasattr(rotary, "inv_freq"):
            return rotary.inv_freq
        return getattr(rotary, f"{self._causal.config.layer_types[layer]}_inv_freq")

    def _context(
        self,
        encoded: list[tuple[Any, Any]],
        rows: Sequence[Sequence[int]],
        branches: Sequence[BranchTokens],
        of: int | None = None,
        into: Any = None,
    ) -> tuple[Any, Any]:
        """Map what is kept of every example's rows and append it, one after another, to a cache; return that and its mask.

        of: branches that an example has; None: as many as rows.
        """
        import transformers

        torch = self._torch
        slots, sizes = encoded[0][0].shape[2], [sum(len(branches[r].kept) for r in held) for held in rows]
        index, kept, mask = np.zeros((3, len(rows), max(sizes)), np.int64)
        for example, held in enumerate(rows):
            places = [(r * slots + len(branches[r].prefix) + t, r) for r in held for t in range(len(branches[r].kept))]
            index[example, : len(places)], kept[example, : len(places)] = np.array(places).T
            mask[example, : len(places)] = 1
        many = np.zeros(len(branches), np.float32)
        for held in rows:
            many[list(held)] = of or len(held)
        scalars = self._scalars(np.array([len(branch.kept) for branch in branches], np.float32), many)
        cache = transformers.DynamicCache() if into is None else into
        where, which = (torch.tensor(x, device=self._device) for x in (index, kept))
        for layer, pair in enumerate(encoded):
            s = scalars[layer][which].to(pair[0].dtype)
            mapped = []
            for x, scale in zip(pair, (0, 2), strict=True):
                x = x.transpose(1, 2).flatten(0, 1)[where].transpose(1, 2)
                mapped.append(x * s[:, None, :, scale, None] + s[:, None, :, scale + 1, None])
            cache.update(*mapped, layer)
        return cache, torch.tensor(mask, device=self._device)

    def _scalars(self, span: Any, branches: Any) -> Any:
        """Return aK, bK, aV, bV `[layers, rows, 4]`."""
        torch, maps = self._torch, self._mapper
        features = np.zeros((self._layers, len(span), 3), np.float32)
        features[..., 0], features[..., 1] = np.log1p(span), np.log1p(branches)
        features[..., 2] = (np.arange(self._layers) / max(self._layers - 1, 1))[:, None]
        x = torch.tensor(features, device=self._device)
        hidden = torch.nn.functional.silu(x @ maps["hidden_kernel"] + maps["hidden_bias"])
        raw = torch.tanh(hidden @ maps["out_kernel"] + maps["out_bias"])
        return torch.tensor(IDENTITY, device=self._device) + REACH * raw

    def _step(self, logits: Any, labels: Any) -> float:
        torch = self._torch
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self._adapter, *self._mapper.values()], 1.0)
        self._optimizer.step()
        return float(loss.detach())
