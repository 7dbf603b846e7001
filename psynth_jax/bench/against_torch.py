"""The same model in transformers, on torch's CPU or CUDA device: the baseline that a user would otherwise run.

A source is a model's name, or a config: then its weights are random.  The modules named after torch
import it, and only when they are asked to.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from psynth_jax.bench.timing import timed
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.load import resolve
from psynth_jax.convert.write_hf import config_to_hf

Source: TypeAlias = str | DecoderConfig


def torch_device() -> str:
    """Return the kind of device that torch runs on: a CUDA device if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_torch(source: Source, dtype: str) -> Any:
    """Return the model in transformers, on `torch_device()`; a config's weights are drawn there."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not isinstance(source, str):
        return _random_model(source, dtype)
    path = resolve(source)
    where = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=False
    )
    return model.eval().to(torch_device())


def _random_model(config: DecoderConfig, dtype: str) -> Any:
    import torch
    import transformers

    raw = config_to_hf(config)
    shape = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device(torch_device()):
        model = transformers.AutoModelForCausalLM.from_config(
            shape, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=False
        )
    return model.eval()


loaded = functools.cache(load_torch)  # for what leaves the model as it is


def prefill(source: Source, dtype: str, tokens: list[int]) -> Callable[[], float]:
    """Return a measure of one forward over `tokens` that computes the last position's logits and keeps the cache."""
    import torch

    model = loaded(source, dtype)
    ids = torch.tensor([tokens], device=model.device)

    def forward() -> None:
        with torch.inference_mode():
            model(ids, logits_to_keep=1, use_cache=True).logits.argmax(-1).tolist()

    return timed(forward)


def decode(source: Source, dtype: str, prompts: list[list[int]], new_tokens: int) -> Callable[[], float]:
    """Return a measure of greedy decoding of equal rows: the seconds from the first token of every row to the last."""
    import torch

    model = loaded(source, dtype)
    ids = torch.tensor(prompts, device=model.device)

    def forward() -> float:
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            begin = time.perf_counter()
            model.generate(ids, max_new_tokens=1, **options).tolist()
            first = time.perf_counter() - begin
            begin = time.perf_counter()
            model.generate(ids, max_new_tokens=new_tokens, **options).tolist()
            return time.perf_counter() - begin - first

    return forward


def generate(source: Source, dtype: str, prompts: list[list[int]], new_tokens: int) -> Callable[[], float]:
    """Return a measure of greedy generation of equal rows, from their prompts to their last token."""
    import torch

    model = loaded(source, dtype)
    ids = torch.tensor(prompts, device=model.device)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}

    def write() -> None:
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=new_tokens, **options).tolist()

    return timed(write)
