"""Kernels and whole steps compile for real TPUs, and hold no copy of a cache.  Compiled for, not run: no TPU is needed.

The kernel is the function whose numbers `tests/ops/test_pallas_tpu.py` checks in interpret mode.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psynth_jax.branches import BranchView
from psynth_jax.cache import KVCache
from psynth_jax.nn.decoder import Decoder, parameter_shapes
from psynth_jax.ops.branch_attention import AttentionSpec, Context, ContextPart, OwnCache, Segments, pallas_tpu
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.presets import preset
from psynth_jax.synthesis import step
from psynth_jax.synthesis.sampling import SamplingOptions, row_sampling
from psynth_jax.synthesis.step import Reader, Rows
from psynth_jax.topology import tpu_slice
from tests.ops.forms import whole

pytestmark = pytest.mark.libtpu
SLICES = ("v5e-1", "v5p-8", "v6e-1", "tpu7x-8")
ITEMSIZE = {"bf16": 2, "f32": 4, "s8": 1, "s32": 4, "u32": 4, "pred": 1}
RESULT = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(")


@pytest.fixture(scope="module", params=SLICES)
def mesh(request: pytest.FixtureRequest) -> Mesh:
    """One device of each generation."""
    return Mesh(np.array(tpu_slice(request.param).devices()[:1]), ("one",))


class Shapes:
    """Makes abstract arrays that live on the device to compile for."""

    def __init__(self, mesh: Mesh, dtype: Any = jnp.bfloat16):
        self.sharding, self.dtype = NamedSharding(mesh, PartitionSpec()), dtype

    def __call__(self, *shape: int, dtype: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype or self.dtype, sharding=self.sharding)

    def like(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: self(*x.shape, dtype=x.dtype), jax.eval_shape(lambda: tree))

    def ints(self, *shape: int) -> Any:
        return self(*shape, dtype=jnp.int32)

    def heads(self, shape: tuple[int, ...], dtype: Any = None) -> CachedHeads:
        packed = shape[-1] < 128
        return jax.tree.map(
            lambda x: self(*x.shape, dtype=x.dtype),
            jax.eval_shape(lambda: CachedHeads.allocate(shape, dtype or self.dtype, packed=packed)),  # type: ignore[arg-type]
        )

    def segments(self, rows: int, count: int) -> Segments:
        return Segments(*[self.ints(rows, count)] * 4)


def held(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def copies(text: str, limit: int) -> list[str]:
    """List what is computed outside of fused computations and is as large as `limit` bytes."""
    found = []
    fused = False
    for line in text.split("\n"):
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            fused = "fused_computation" in line
        result = RESULT.match(line)
        if fused or result is None or result[1] not in ITEMSIZE:
            continue
        size = ITEMSIZE[result[1]] * math.prod(int(n) for n in result[2].split(",") if n)
        if size >= limit and result[3] in ("copy", "slice", "dynamic-slice", "transpose", "fusion", "gather", "concatenate"):
            found.append(line.strip()[:200])
    return found


# name: dtype of queries, of caches, H, K, G, B, T
KERNELS = {
    "decode": (jnp.bfloat16, jnp.bfloat16, 128, 8, 4, 4, 1),
    "prefill": (jnp.bfloat16, jnp.bfloat16, 128, 8, 5, 1, 256),
    "decode packed": (jnp.bfloat16, jnp.bfloat16, 64, 8, 4, 1, 1),
    "prefill packed": (jnp.bfloat16, jnp.bfloat16, 64, 3, 3, 1, 64),
    "decode int8": (jnp.bfloat16, jnp.int8, 128, 8, 4, 1, 1),
    "prefill float32": (jnp.float32, jnp.float32, 128, 8, 4, 1, 64),
}


class TestKernel:
    @pytest.mark.parametrize("name", KERNELS)
    @pytest.mark.parametrize("way", ["forward", "gradients"])
    def test_compiles(self, mesh: Mesh, name: str, way: str) -> None:
        dtype, cache_dtype, width, kv_heads, group, batch, tokens = KERNELS[name]
        make, layers, slots, branches = Shapes(mesh, dtype), 2, 4096, 8
        q = make(batch, tokens, kv_heads * group, width)
        k = make(batch, tokens, kv_heads, width)
        own = OwnCache(make.heads((layers, batch, kv_heads, 512, width), cache_dtype), make.ints(batch))
        part = ContextPart(make.heads((layers, 8, kv_heads, slots, width), cache_dtype), make.segments(batch, branches))
        angles = make(batch, branches, width // 2, dtype=jnp.float32)
        context = Context((part,), angles, angles, make(layers, batch, branches, 4, dtype=jnp.float32))

        def forward(q: Any, k: Any, v: Any, scalars: Any, own: Any, context: Any, layer: Any) -> Any:
            mapped = dataclasses.replace(context, scalars=scalars)
            return whole(pallas_tpu.attend)(q, k, v, own, mapped, layer, AttentionSpec(width**-0.5))

        def gradients(*arguments: Any) -> Any:
            return jax.grad(lambda *a: forward(*a).astype(jnp.float32).sum(), argnums=(0, 1, 2, 3))(*arguments)

        function = {"forward": forward, "gradients": gradients}[way]
        with jax.set_mesh(mesh):
            lowered = jax.jit(function).lower(q, k, k, context.scalars, own, context, make.ints())
            compiled = lowered.compile()
        text = compiled.as_text()
        assert text.count("tpu_custom_call") == (1 if way == "forward" else 2)
        assert copies(text, held(part.heads) // layers) == []
        assert compiled.memory_analysis().temp_size_in_bytes < held(part.heads) / (10 if way == "forward" else 5)


def text_of(compiled: Any, newest: bool) -> str | None:
    """Return the compiled text; None where this jaxlib cannot read it back (some programs of the newest generation)."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        if newest and "async-update" in str(error):
            return None
        raise


# name: T, rows, whether branches are read
PROGRAMS = {"synthesize": (64, 1, True), "decode": (1, 1, True), "workers": (1, 8, False)}


class TestStep:
    """The whole step of a model, four layers of it, over branches of 4,096 tokens."""

    @pytest.mark.parametrize("model", ["qwen3-0.6b", "llama-3.2-1b"])
    @pytest.mark.parametrize("program", PROGRAMS)
    def test_holds_no_copy_of_a_cache(self, mesh: Mesh, model: str, program: str) -> None:
        tokens, batch, reads = PROGRAMS[program]
        config = preset(model).config.model_copy(update={"layers": 4, "vocab_size": 1024})
        make, branches, slots = Shapes(mesh), 8, 4096
        shape = lambda rows, slots: (config.layers, rows, config.kv_heads, slots, config.head_width)  # noqa: E731

        def model_of_zeros() -> Decoder:
            return Decoder(config, {name: jnp.zeros(x, jnp.bfloat16) for name, x in parameter_shapes(config).items()})

        decoder = jax.tree.map(lambda x: make(*x.shape, dtype=x.dtype), jax.eval_shape(model_of_zeros))
        context = make.heads(shape(batch * branches, slots))
        view = BranchView(
            (ContextPart(context, make.segments(batch, branches)),),
            make.ints(batch, branches),
            make.ints(batch, branches),
            make(batch, branches, dtype=jnp.bool_),
        )
        own = KVCache(make.heads(shape(batch, 512 if reads else slots)), make.ints(batch))
        fed = Rows(make.ints(batch, tokens), *[make.ints(batch)] * 3)
        sampling = make.like(row_sampling(SamplingOptions(), [(0, 0)] * batch))
        advance = jax.jit(step.advance, static_argnames=("fresh", "greedy", "implementation"), donate_argnames="cache")
        with jax.set_mesh(mesh):
            compiled = advance.lower(
                decoder, Reader(view=view if reads else None), fed, own, make(batch, config.width), sampling, make.ints(),
                fresh=False, greedy=True, implementation="pallas_tpu",
            ).compile()  # fmt: skip
        newest, memory = "7x" in mesh.devices.flat[0].device_kind, compiled.memory_analysis()
        text, read = text_of(compiled, newest), context if reads else own.heads
        if text is not None:
            assert text.count("tpu_custom_call") == 1, "one kernel, in the scan over layers"
            found = copies(text, held(read) // config.layers)
            weights = {f"[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(decoder)} if newest else set()
            assert [line for line in found if not any(shape in line for shape in weights)] == []
        assert memory.alias_size_in_bytes >= held(own.heads), "the donated cache is not written in place"
        # For the newest generation XLA changes the layout of the weights first; for no other does it copy anything.
        relaid = held(decoder) if newest else 0
        assert memory.temp_size_in_bytes < held(read) / 25 + relaid
