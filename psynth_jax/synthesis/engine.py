"""The two ways of running steps: a whole prompt in chunks, or one token per row.

Every shape is compiled once, ahead of its first call, and the time that takes is counted apart
(`Engine.now`), so that a time to first token never contains a compilation.  Prompts of any length
use the same few chunk sizes:

    prompt of 1,400 tokens   [ 512 | 512 | 384 ]      the last chunk is padded, the cache has room for the padding

Rows of very different lengths are fed at once, as one list of their real tokens (`nn/ragged.py`), where that is shorter than
the first chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from psynth_jax.axes import Array, HostArray, pad_rows
from psynth_jax.cache import KVCache, slot_bucket
from psynth_jax.engine.programs import Program, ProgramCall, Programs
from psynth_jax.errors import NotFiniteError
from psynth_jax.nn.decoder import Decoder
from psynth_jax.nn.ragged import list_rows
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.sharding import put, replicated, shards
from psynth_jax.synthesis import step
from psynth_jax.synthesis.sampling import RowSampling, Sampled
from psynth_jax.synthesis.step import Reader, Rows

# Rows are fed as a list that is at most so long as their first chunk is with its padding, if it saves this many tokens:
# there are more sizes of lists than of chunks, and each is compiled.
RAGGED, LEAST_SAVED = 0.8, 1024

CHUNKS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def chunk_sizes(tokens: int) -> list[int]:
    """Cut a prompt of `tokens` tokens into chunks of `CHUNKS`: all full but the last, which is the smallest that fits."""
    full, rest = divmod(tokens, CHUNKS[-1])
    return [CHUNKS[-1]] * full + [size for size in CHUNKS if size >= rest > 0][:1]


def list_size(tokens: int) -> int:
    """Round a number of tokens up, to at most four sizes between a power of two and the next: each is compiled."""
    step = max(CHUNKS[0], (1 << (tokens - 1).bit_length()) // 8)
    return -(-tokens // step) * step


def slots_needed(filled: int, prompt: int, new_tokens: int) -> int:
    """Capacity of an own cache with `filled` slots that takes a prompt and `new_tokens` more (one slot is left spare)."""
    return slot_bucket(filled + max(sum(chunk_sizes(prompt)), prompt + new_tokens + 1))


def _chunks(prompts: Sequence[Sequence[int]], filled: HostArray, offset: HostArray) -> list[Rows]:
    """Cut prompts into chunks of padded rows, one behind the other."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    feeds, first = [], 0
    for size in chunk_sizes(int(lengths.max())):
        tokens = pad_rows([prompt[first : first + size] for prompt in prompts], size)
        count = np.clip(lengths - first, 0, size).astype(np.int32)
        feeds.append(Rows(tokens, filled + np.int32(first), count, offset))
        first += size
    return feeds


def _row_axes(cache: KVCache) -> tuple[str, ...]:
    return () if cache.placement is None else cache.placement.row_axes


class Engine:
    """Runs one decoder, over the mesh of its weights.  Holds compiled programs, no other state.

    cache_dtype: of the caches that become branches; None is the model's own.

    Threads may share one: every call has its own caches, and `Programs` may be shared.
    """

    def __init__(self, model: Decoder, implementation: Implementation = "auto", cache_dtype: str | None = None):
        self.model = model
        self.cache_dtype = cache_dtype
        self.implementation = implementation
        self.programs = Programs(model)

    def now(self) -> float:
        """Return `Programs.now`: a clock without the time that this thread waits for compilations."""
        return self.programs.now()

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the steps run on; None: one."""
        return self.model.mesh

    def place(self, tree: Any) -> Any:
        """Move small host arrays to the device, or whole to every device of the mesh."""
        if self.mesh is None:
            return jax.device_put(tree)
        everywhere = replicated(self.mesh)
        return jax.tree.map(lambda x: x if self._is_here(x) else put(np.asarray(x), everywhere), tree)

    def _is_here(self, x: Any) -> bool:
        return isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh == self.mesh

    def _run(self, program: Program, /, *args: Any, **static: Any) -> Any:
        """Run a program of `step`, compiling it first for shapes that are new."""
        if self.mesh is not None:
            args = self.place(args)
        return self.programs.run(ProgramCall(program, args, static))

    def allocate(self, rows: int, slots: int, row_axes: tuple[str, ...] = (), *, for_branches: bool = False) -> KVCache:
        """Return an empty own cache, in `cache_dtype` if its rows will become branches.

        row_axes: mesh axes that its rows, and all that runs for them, are cut over.
        """
        row_axes = row_axes if self.mesh is not None else ()
        dtype = self.cache_dtype if for_branches else None
        return self._run(step.ALLOCATE, rows=rows, slots=slots, dtype=dtype, row_axes=row_axes)

    def grow(self, cache: KVCache, slots: int) -> KVCache:
        """Return a cache with room for `slots`: a copy, unless it has it already."""
        return cache if cache.slots >= slots else self._run(step.GROW, cache, slots=slots)

    def prefill(
        self,
        reader: Reader,
        prompts: Sequence[Sequence[int]],
        cache: KVCache,
        filled: HostArray,
        offset: HostArray,
        sampling: RowSampling | None,
        *,
        greedy: bool = True,
    ) -> tuple[KVCache, Array, Sampled | None]:
        """Feed whole prompts; return the cache, the hidden state after each prompt's last token, and sampled tokens.

        Args:
          reader: adapter, mapper and branches.
          prompts: token ids of each row; one at least has some.
          cache: own cache with room for `slots_needed`; it is donated.
          filled: `[B]` int32 slots filled already.
          offset: `[B]` int32 position of slot 0.
          sampling: None samples nothing.
        """
        hidden = np.zeros((len(prompts), self.model.config.width), self.model.dtype)
        sampled, empty = None, not filled.any()
        feeds = self._listed(prompts, cache, offset) if empty and reader.strength is None else []
        feeds = feeds or _chunks(prompts, filled, offset)
        for number, rows in enumerate(feeds, 1):
            cache, hidden, sampled = self._run(
                step.ADVANCE,
                reader,
                rows,
                cache,
                hidden,
                sampling if number == len(feeds) else None,
                np.int32(0),
                fresh=number == 1 and empty,
                greedy=greedy,
                implementation=self.implementation,
            )
        return cache, hidden, sampled

    def _listed(self, prompts: Sequence[Sequence[int]], cache: KVCache, offset: HostArray) -> list[Rows]:
        """Return whole prompts as one feed of their real tokens; nothing where it would not be much shorter than a chunk."""
        sizes = chunk_sizes(max(map(len, prompts)))
        listed, ragged = list_rows(prompts, sum(sizes), shards(self.mesh, _row_axes(cache)), list_size)
        padded = len(prompts) * sizes[0]
        if listed.size > min(RAGGED * padded, padded - LEAST_SAVED):
            return []
        return [Rows(listed, np.zeros(len(prompts), np.int32), ragged.count, offset, ragged)]

    def decode(
        self,
        reader: Reader,
        token: Array,
        cache: KVCache,
        start: HostArray,
        feeding: HostArray,
        offset: HostArray,
        hidden: Array,
        sampling: RowSampling,
        index: int,
        *,
        greedy: bool,
    ) -> tuple[KVCache, Array, Sampled]:
        """Feed one token `[B]` per row and sample the next.  Rows where `feeding [B]` is 0 run idle."""
        rows = Rows(token[:, None], start, feeding, offset)
        return self._run(
            step.ADVANCE,
            reader,
            rows,
            cache,
            hidden,
            sampling,
            np.int32(index),
            fresh=False,
            greedy=greedy,
            implementation=self.implementation,
        )

    def score(
        self, reader: Reader, rows_of_tokens: Sequence[Sequence[int]], cache: KVCache, offset: HostArray
    ) -> list[HostArray]:
        """Return, for every row, the log-probability of each of its tokens but the first, given those before it."""
        lengths = np.array([len(row) for row in rows_of_tokens], np.int32)
        sizes = chunk_sizes(int(lengths.max()))
        tokens = pad_rows(rows_of_tokens, sum(sizes) + 1)
        found, first = [], 0
        for size in sizes:
            count = np.clip(lengths - first, 0, size).astype(np.int32)
            rows = Rows(tokens[:, first : first + size], np.full_like(lengths, first), count, offset)
            cache, logp = self._run(
                step.SCORE,
                reader,
                rows,
                cache,
                tokens[:, first + 1 : first + size + 1],
                fresh=first == 0,
                implementation=self.implementation,
            )
            found.append(np.asarray(logp))
            first += size
        joined = np.concatenate(found, axis=1)
        return [joined[row, : length - 1] for row, length in enumerate(lengths)]


def not_finite(engine: Engine, what: str) -> NotFiniteError:
    """Return the error for numbers of an engine that are NaN or infinite; `what` says where they were met."""
    dtype = engine.model.dtype.name
    if dtype == "float16":
        why = "float16 overflows above 65,504: load the model with dtype bfloat16 or float32"
    elif engine.cache_dtype == "float16":
        why = "float16 overflows above 65,504: use another cache_dtype, such as bfloat16"
    else:
        why = "the weights, the adapter or the branches hold NaN or infinities, or numbers that overflow"
    return NotFiniteError(f"{what} are not finite numbers ({dtype}): {why}")
