"""One loaded model, ready to run: its programs, and a pool of slots for every number format of caches.

All that read a model share its machine: a branch that one `ParallelSynthesis` made is read by another without a copy.

    size of a pool   CPU: from the first call, a power of two of at least 8,192 slots a block; it doubles when it must
                     accelerator: half of the memory that is free when the first call comes, for good
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding

from psynth_jax.buckets import Buckets
from psynth_jax.cache import cache_spec, packed_here, placement_on
from psynth_jax.engine.programs import Programs
from psynth_jax.engine.scheduler import Scheduler
from psynth_jax.errors import MemoryLimitError, is_out_of_memory
from psynth_jax.kv.pool import Lease, Pool
from psynth_jax.kv.processes import smallest
from psynth_jax.kv.transfer import StoredSlots, read_slots, write_slots
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import BRANCH, DATA, ROW_AXES, shards

LEAST_SLOTS = 8192
SHARE_OF_FREE_MEMORY = 0.5
PAGE, PAGE_ON_CPU = 128, 64


class Machine:
    """A model's programs and pools.  Threads may share one."""

    def __init__(self, model: Decoder, implementation: Implementation = "auto", buckets: Buckets | None = None):
        """Begin with no pool and no program.  buckets: None: those that suit the default device."""
        self.model = model
        self.implementation: Implementation = implementation
        self.buckets = buckets or buckets_here()
        self.programs = Programs(model)
        self._pools: dict[str, Pool] = {}
        self._schedulers: dict[str, Scheduler] = {}
        self._copies: weakref.WeakKeyDictionary[Lease | StoredSlots, dict[tuple[Pool, int], Lease]]
        self._copies = weakref.WeakKeyDictionary()
        self._lock, self._copying = threading.Lock(), threading.Lock()

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the model lies on; None: one."""
        return self.model.mesh

    @property
    def blocks(self) -> int:
        """Blocks of a pool."""
        return shards(self.mesh, ROW_AXES)

    def pool(self, dtype: str, slots: int = 0) -> Pool:
        """Return the pool of a number format; made at the first call, with room for `slots` slots a block at least."""
        with self._lock:
            if dtype not in self._pools:
                self._pools[dtype] = self._new_pool(dtype, slots)
            return self._pools[dtype]

    def scheduler(self, dtype: str, slots: int = 0) -> Scheduler:
        """Return what runs sequences over the pool of a number format: always the same one.

        slots: that its first sequences take, for the size of a new pool.
        """
        pool = self.pool(dtype, slots)
        with self._lock:
            if dtype not in self._schedulers:
                self._schedulers[dtype] = self._new_scheduler(pool)
            return self._schedulers[dtype]

    def scheduler_of_its_own(self, dtype: str, slots: int) -> Scheduler:
        """Return a scheduler over a new pool of `slots` slots, in whole pages of a block, which never grows."""
        page = page_here()
        a_block = -(-slots // (self.blocks * page)) * page
        try:
            pool = Pool(functools.partial(empty_heads, self.model, self.blocks, dtype), a_block, page)
        except Exception as error:  # JAX has no class for a device without memory; others go on
            if not is_out_of_memory(error):
                raise
            raise MemoryLimitError(f"the device has no memory for a pool of {slots:,} tokens: use fewer") from None
        return self._new_scheduler(pool)

    def held_in(self, pool: Pool, held: Lease | StoredSlots, block: int) -> Lease:
        """Return slots of `pool` with the keys and values of what is held elsewhere, on one part of `data`.

        What is there already is returned as it is.  Others are copied to `block` once; the copy lives as long as what it
        was made of.  Raises `MemoryLimitError` for slots whose pool was lost, or as `Pool.reserve` does.
        """
        if isinstance(held, Lease):
            held.check()
            if held.pool is pool and self._same_part(held.runs[0].block, block):
                return held
        with self._copying:
            copies = self._copies.setdefault(held, {})
            key = pool, self._part(block)
            if key not in copies or copies[key].lost:
                stored = held if isinstance(held, StoredSlots) else read_slots(held)
                copies[key] = write_slots(pool, stored, block)
            return copies[key]

    def forget_copies(self, pool: Pool) -> None:
        """Let go of the copies of what is held elsewhere in one pool."""
        with self._copying:
            for copies in self._copies.values():
                for key in list(copies):
                    if key[0] is pool:
                        del copies[key]

    def _same_part(self, one: int, other: int) -> bool:
        return self._part(one) == self._part(other)

    def _part(self, block: int) -> int:
        return block // shards(self.mesh, (BRANCH,))

    def _new_scheduler(self, pool: Pool) -> Scheduler:
        return Scheduler(self.programs, pool, self.buckets, self.implementation, lag_here())

    def _new_pool(self, dtype: str, slots: int) -> Pool:
        allocate = functools.partial(empty_heads, self.model, self.blocks, dtype)
        if jax.default_backend() == "cpu":
            size = LEAST_SLOTS
            while size < slots:
                size *= 2
            return Pool(allocate, size, page_here(), most_slots=1 << 30)
        size = slots_that_fit(self.model, dtype, self.blocks)
        if self.mesh is not None:
            size = smallest(self.mesh, size)
        return Pool(allocate, size, page_here())


def page_here() -> int:
    """Return the slots of a page on the default device."""
    return PAGE_ON_CPU if jax.default_backend() == "cpu" else PAGE


def lag_here() -> int:
    """Return how many steps the default device may be ahead of the host.

    A CPU computes with the cores that the host needs: there, to be ahead gains nothing.
    """
    return 0 if jax.default_backend() == "cpu" else 1


_registering = threading.Lock()


def machine_of(model: Model, implementation: Implementation = "auto") -> Machine:
    """Return the machine of a loaded model: always the same one."""
    with _registering:
        machine = model.machines.get(implementation)
        if machine is None or machine.model is not model.decoder:
            machine = model.machines[implementation] = Machine(model.decoder, implementation)
        return machine


def buckets_here() -> Buckets:
    """Return the shapes that suit the default device."""
    return buckets_of(jax.default_backend())


def buckets_of(platform: str) -> Buckets:
    """Return the shapes that suit a platform, such as "cpu"."""
    if platform == "cpu":
        return Buckets()
    # On an accelerator, to read the weights takes as long as some hundred tokens of prefill.
    prefill = ((1, 64), (1, 512), (1, 2048), (8, 64), (8, 256))
    return Buckets(prefill=prefill, call_tokens=256, chunk_between_tokens=512)


def empty_heads(model: Decoder, blocks: int, dtype: str, slots: int) -> CachedHeads:
    """Return empty keys and values `[L, R, K, S, H]` of a pool of a model, on its devices."""
    config, mesh = model.config, model.mesh
    placement = placement_on(mesh, config.kv_heads, ROW_AXES)
    copies = 1 if placement is None else placement.copies
    shape = (config.layers, blocks, config.kv_heads * copies, slots, config.head_width)

    def make() -> CachedHeads:
        heads = CachedHeads.allocate(shape, dtype, packed=packed_here(config.head_width))
        return dataclasses.replace(heads, placement=placement)

    if mesh is None:
        return make()
    return jax.jit(make, out_shardings=NamedSharding(mesh, cache_spec(placement)))()


def bytes_a_slot(model: Decoder, dtype: str) -> int:
    """Return the bytes that a token takes in a pool, on all devices of a block together."""
    heads = jax.eval_shape(lambda: empty_heads_of_one_slot(model, dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(heads))


def empty_heads_of_one_slot(model: Decoder, dtype: str) -> CachedHeads:
    """Return a pool of one slot on one device."""
    config = model.config
    shape = (config.layers, 1, config.kv_heads, 1, config.head_width)
    return CachedHeads.allocate(shape, dtype, packed=packed_here(config.head_width))


def slots_that_fit(model: Decoder, dtype: str, blocks: int, devices: Sequence[jax.Device] | None = None) -> int:
    """Return how many slots a block has if pools take `SHARE_OF_FREE_MEMORY` of what is free now, in whole pages.

    Raises `MemoryLimitError` when that is not a single page.
    """
    found = list(devices or (jax.local_devices() if model.mesh is None else model.mesh.local_devices))
    free = []
    for device in found[:1] if model.mesh is None else found:
        stats = device.memory_stats() or {}
        free.append(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))
    tensor = 1 if model.mesh is None else model.mesh.shape["tensor"]
    slots = int(min(free) * SHARE_OF_FREE_MEMORY * tensor / bytes_a_slot(model, dtype))
    if slots < PAGE:
        raise MemoryLimitError(
            f"after the weights, {min(free):,} bytes of a device are free, which is no room for caches: "
            "use a smaller model, dtype bfloat16, or more devices"
        )
    return slots // PAGE * PAGE


def home_block(machine: Machine, question: int, questions: int) -> int:
    """Return the first block of the part of `data` on which a question of a batch is answered."""
    data, branch = shards(machine.mesh, (DATA,)), shards(machine.mesh, (BRANCH,))
    return question * data // questions * branch


def branch_block(machine: Machine, question: int, questions: int, number: int) -> int:
    """Return the block of branch `number` of a question: dealt round robin over its part's branch blocks."""
    return home_block(machine, question, questions) + number % shards(machine.mesh, (BRANCH,))
