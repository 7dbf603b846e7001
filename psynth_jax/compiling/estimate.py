"""What a step must do at least, counted by hand, and how long that takes on the chip: its roofline.

    seconds   max(bytes that a device reads / its bandwidth, flops of a device / its peak)

XLA's own count takes the body of the scan over layers once, so it is of no use here.  Collectives and the latency of small
operations come on top of it: this is a floor, not a forecast.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psynth_jax.compiling.workload import Workload
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import numbers_per_token, parameter_letters, parameter_shapes, shardings_of
from psynth_jax.sharding import BRANCH, FSDP, TENSOR, kv_copies
from psynth_jax.training.batch import Counts
from psynth_jax.training.flops import step_flops


@dataclasses.dataclass(frozen=True)
class Estimate:
    """flops: of the whole program, nothing counted twice.  device_flops, device_bytes: what one device does and reads.

    seconds: the floor.
    """

    flops: int
    device_flops: int
    device_bytes: int
    seconds: float


def estimate(work: Workload, mesh: Mesh) -> Estimate:
    """Count a program; a long prompt's chunks together."""
    if work.program == "train":
        return _train_step(work, mesh)
    config = work.config
    blocks = mesh.shape[BRANCH]  # that the branches of one question are dealt over
    reads_branches = work.program != "workers"
    rows = 1 if reads_branches else work.branches
    tokens = work.prompt_tokens if work.program == "synthesize" else 1

    dense = numbers_per_token(config)
    adapter = work.rank * config.layers * (4 * config.width + 2 * (config.heads + config.kv_heads) * config.head_width)
    head = config.vocab_size * config.width
    weights_flops = 2 * rows * (tokens * (dense + (adapter if reads_branches else 0)) + head)

    if work.program == "synthesize":
        cached, own = work.branches * work.branch_tokens, (tokens + 1) / 2
    elif work.program == "decode":
        cached, own = work.branches * work.branch_tokens, work.prompt_tokens + work.new_tokens
    else:
        cached, own = work.prompt_tokens, work.branch_tokens
    per_slot = 4 * config.layers * config.heads * config.head_width * rows * tokens
    attention_flops = int(per_slot * (cached + own))

    # Rows of workers are sharded over branch; a question is on all of its devices, its branches are not.
    weight_shards = mesh.shape[TENSOR] * mesh.shape[FSDP] * (1 if reads_branches else blocks)
    attention_shards = mesh.shape[TENSOR] * blocks
    calls = len(work.calls(mesh))
    every_call, once = _weight_bytes(work, mesh, rows * tokens)
    device_bytes = calls * every_call + _cache_bytes(work, mesh, calls, cached, own) + once
    device_flops = weights_flops // weight_shards + attention_flops // attention_shards
    chip = work.slice.chip
    seconds = max(device_bytes / chip.bandwidth, device_flops / chip.flops)
    return Estimate(weights_flops + attention_flops, device_flops, device_bytes, seconds)


def _train_step(work: Workload, mesh: Mesh) -> Estimate:
    """Count a training step: every device reads all layers for branches, forwards, anew, and backwards."""
    config, questions = work.config, work.questions
    fed, cached = work.prompt_tokens + work.new_tokens, work.branches * work.branch_tokens
    counts = Counts(
        examples=questions,
        branch_tokens=questions * cached,
        prompt_tokens=questions * work.prompt_tokens,
        target_tokens=questions * work.new_tokens,
        branch_pairs=questions * work.branches * work.branch_tokens**2 // 2,
        student_pairs=questions * (fed * cached + fed * fed // 2),
    )
    lora = jax.eval_shape(lambda: Lora.initialise(config, work.rank, 1.0, jax.random.key(0))) if work.rank else None
    flops = step_flops(config, lora, counts)
    device_flops = flops // mesh.devices.size
    shapes = parameter_shapes(config)
    layers = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("layers."))
    device_bytes = 4 * layers * jnp.dtype(work.dtype).itemsize // mesh.shape[TENSOR]
    chip = work.slice.chip
    return Estimate(flops, device_flops, device_bytes, max(device_bytes / chip.bandwidth, device_flops / chip.flops))


def _weight_bytes(work: Workload, mesh: Mesh, tokens: int) -> tuple[int, int]:
    """Bytes of the weights that one device reads in every call, and in the last one alone: those of the head.

    An embedding is only looked up, and of experts no more are read than the tokens of a call can choose.
    """
    config = work.config
    cut, shapes = shardings_of(config, mesh), parameter_shapes(config)
    held = {name: math.prod(cut[name].shard_shape(shapes[name])) for name in parameter_letters(config)}
    for name in ("gate", "up", "down") if config.experts else ():
        held[f"layers.{name}"] = (
            held[f"layers.{name}"] * min(config.experts, tokens * config.experts_per_token) // config.experts
        )
    itemsize, head = jnp.dtype(work.dtype).itemsize, held.get("head", held["embedding"])
    return itemsize * sum(size for name, size in held.items() if name not in ("embedding", "head")), itemsize * head


def _cache_bytes(work: Workload, mesh: Mesh, calls: int, cached: float, own: float) -> int:
    """Bytes of keys and values that one device reads in all calls."""
    config = work.config
    heads = config.kv_heads * kv_copies(config.kv_heads, mesh) // mesh.shape[TENSOR]
    cache_dtype = work.cache_dtype or work.dtype
    scale_bytes = 4 if cache_dtype == "int8" else 0
    slot = 2 * config.layers * heads * (config.head_width * jnp.dtype(cache_dtype).itemsize + scale_bytes)

    on_a_block = -(-work.branches // mesh.shape[BRANCH])
    if work.program == "workers":
        # All of a call share the prompt; every worker is in one of the calls.
        return int((calls * cached + on_a_block * own) * slot)
    return int(calls * (on_a_block * work.branch_tokens + own) * slot)
