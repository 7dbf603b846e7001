"""A small engine over random weights, and plain texts to compare it with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from psynth_jax.buckets import Buckets
from psynth_jax.cache import cache_spec, placement_on
from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.engine.programs import Programs
from psynth_jax.engine.scheduler import Scheduler
from psynth_jax.engine.sequences import BASE, BranchRead, Next, PositionedRun, Token, TokenSequence
from psynth_jax.engine.step import Conditioning
from psynth_jax.kv.pool import Lease, Pool
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import Decoder
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import ROW_AXES

V = 97
CONFIG = DecoderConfig(
    family="llama", vocab_size=V, width=24, layers=3, heads=6, kv_heads=2, head_width=8, mlp_width=32, norm_eps=1e-5,
    rope=PlainRope(theta=1e4), max_positions=4096,
)  # fmt: skip
BUCKETS = Buckets(decode=(1, 4, 8), prefill=((1, 16), (1, 64), (4, 16)), branches=(5, 9))
PAGE = 8
LAG = 0  # of schedulers; tests run with either


@functools.cache
def programs_of(config: DecoderConfig, mesh: Mesh | None) -> Programs:
    """Return the programs of a random model."""
    return Programs(Decoder.random(config, seed=1, mesh=mesh))


def scheduler(
    slots: int = 512,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    buckets: Buckets = BUCKETS,
    config: DecoderConfig = CONFIG,
    most_slots: int | None = None,
) -> Scheduler:
    """Return an engine over a new pool; its weights are always the same, and so are its compiled programs."""
    programs = programs_of(config, mesh)
    placement = placement_on(mesh, config.kv_heads, ROW_AXES)
    blocks = 1 if mesh is None else mesh.shape["data"] * mesh.shape["branch"]

    def allocate(slots: int) -> CachedHeads:
        heads = config.kv_heads * (1 if placement is None else placement.copies)
        shape = (config.layers, blocks, heads, slots, config.head_width)
        made = dataclasses.replace(CachedHeads.allocate(shape, dtype, packed=False), placement=placement)
        if mesh is None:
            return made
        return jax.device_put(made, NamedSharding(mesh, cache_spec(placement)))

    return Scheduler(programs, Pool(allocate, slots, PAGE, most_slots), buckets, lag=LAG)


def conditioning(model: Decoder, seed: int = 3) -> Conditioning:
    """Return a random LoRA and mapper."""
    keys = jax.random.split(jax.random.key(seed), 5)
    mapper = dataclasses.replace(
        Mapper.initialise(keys[0]),
        out_kernel=jax.random.normal(keys[1], (32, 4)),
        out_bias=jax.random.normal(keys[2], (4,)),
    )
    config, rank = model.config, 4
    down = {"q": 0.3 * jax.random.normal(keys[3], (config.layers, config.width, rank))}
    shape = (config.layers, rank, config.heads, config.head_width)
    up = {"q": 0.3 * jax.random.normal(keys[4], shape)}
    return Conditioning(mapper, Lora(down, up, jnp.float32(1.0)))


class Written:
    """A listener that keeps what it hears, and ends after `limit` tokens."""

    def __init__(self, limit: int, append_last: bool = False):
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._limit, self._append_last = limit, append_last

    def __call__(self, token: Token) -> Next:
        if len(self.tokens) == self._limit:  # one step more gave the last token its keys and values
            return Next.END
        self.tokens.append(token.id)
        self.logprobs.append(token.logprob)
        if len(self.tokens) < self._limit or self._append_last:
            return Next.GO_ON
        return Next.END


@dataclasses.dataclass
class Worker:
    """A sequence that writes a branch, and the branch."""

    prompt: list[int]
    written: Written
    sequence: TokenSequence

    def branch(self) -> tuple[BranchRead, Lease]:
        """Return what it wrote, re-encoded to position 0, and the lease that keeps it."""
        count = len(self.written.tokens)
        lease = self.sequence.held(len(self.prompt), count)
        runs, position = [], 0
        for run in lease.runs:
            runs.append(PositionedRun(run, position))
            position += run.length
        return BranchRead(tuple(runs), shift=len(self.prompt), span=count), lease


def sequence(prompt: Sequence[int], written: Written, limit: int, **options: Any) -> TokenSequence:
    """Return a sequence of the vocabulary of `CONFIG`; see `TokenSequence`."""
    return TokenSequence(list(prompt), written, **{"new_tokens": limit, "vocabulary": V} | options)


def worker(prompt: Sequence[int], limit: int = 6, **options: Any) -> Worker:
    """Return a worker that has not written yet."""
    written = Written(limit, append_last=True)
    return Worker(list(prompt), written, sequence(prompt, written, limit, **options))


def synthesizer(
    prompt: Sequence[int],
    branches: Sequence[BranchRead],
    condition: Conditioning = BASE,
    limit: int = 6,
    **options: Any,
) -> tuple[TokenSequence, Written]:
    """Return a sequence that reads branches, behind the longest of them."""
    written = Written(limit)
    position = max((branch.span for branch in branches), default=0)
    options = {"branches": branches, "position": position, "conditioning": condition, "scale": 1.0} | options
    return sequence(prompt, written, limit, **options), written


def prompt(seed: int, length: int) -> list[int]:
    """Return random token ids."""
    return np.random.default_rng(seed).integers(0, V, length).tolist()


def greedy(model: Decoder, tokens: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """Write `count` tokens by running the whole text again for each: no cache, no bucket, no other row."""
    text, logprobs = list(tokens), []
    for _ in range(count):
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(text)] = text
        hidden, _, _ = _whole(model, padded)
        logits = model.logits(hidden[0, len(text) - 1])
        text.append(int(jnp.argmax(logits)))
        logprobs.append(float(logits.max() - jax.nn.logsumexp(logits)))
    return text[len(tokens) :], logprobs


@jax.jit
def _whole(model: Decoder, tokens: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    return model(tokens, np.zeros(1, np.int32))
