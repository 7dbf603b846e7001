"""Kernels and whole steps compile for real TPUs, and hold no copy of a cache.  Compiled for, not run: no TPU is needed.

The kernel is the function whose numbers `tests/ops/test_pallas_tpu.py` checks in interpret mode.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psynth_jax.compiling.compiled_text import CompiledText
from psynth_jax.compiling.report import report
from psynth_jax.compiling.workload import workload
from psynth_jax.ops.branch_attention import Context, ContextPart, Runs, pallas_tpu
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.presets import PRESETS, Preset, preset
from psynth_jax.topology import tpu_slice
from tests.ops.forms import whole
from tests.slow import exhaustive_but

pytestmark = pytest.mark.libtpu
SLICES = ("v5e-1", "v5p-8", "v6e-1", "tpu7x-8")


@pytest.fixture(scope="module", params=exhaustive_but(SLICES, fast=["v5e-1"]))
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

    def runs(self, rows: int, count: int) -> Runs:
        return Runs(*[self.ints(rows, count)] * 5, self.ints(rows))


def held(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


# name: dtype of queries, of caches, H, K, G, B, T
KERNELS = {
    "prefill": (jnp.bfloat16, jnp.bfloat16, 128, 8, 5, 1, 256),
    "decode packed": (jnp.bfloat16, jnp.bfloat16, 64, 8, 4, 1, 1),
    "int8": (jnp.bfloat16, jnp.int8, 128, 8, 4, 1, 64),
    "float32": (jnp.float32, jnp.float32, 128, 8, 4, 1, 64),
}


class TestKernel:
    """Both ways, and forward alone what no step of a model takes."""

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "way"), [(name, "gradients") for name in KERNELS] + [("float32", "forward")])
    def test_compiles(self, mesh: Mesh, name: str, way: str) -> None:
        dtype, cache_dtype, width, kv_heads, group, batch, tokens = KERNELS[name]
        make, layers, slots, branches = Shapes(mesh, dtype), 2, 4096, 8
        q = make(batch, tokens, kv_heads * group, width)
        k = make(batch, tokens, kv_heads, width)
        own = ContextPart(make.heads((layers, batch, kv_heads, 512, width), cache_dtype), make.runs(batch, 1))
        part = ContextPart(make.heads((layers, 8, kv_heads, slots, width), cache_dtype), make.runs(batch, branches))
        angles = make(batch, branches, width // 2, dtype=jnp.float32)
        scalars = make(layers, batch, branches, 4, dtype=jnp.float32)
        context = Context((own, part), angles, angles, scalars, make.ints(batch))

        def forward(q: Any, k: Any, v: Any, scalars: Any, context: Any, layer: Any) -> Any:
            mapped = dataclasses.replace(context, scalars=scalars)
            return whole(pallas_tpu.attend)(q, k, v, mapped, layer, width**-0.5)

        def gradients(*arguments: Any) -> Any:
            return jax.grad(lambda *a: forward(*a).astype(jnp.float32).sum(), argnums=(0, 1, 2, 3))(*arguments)

        function = {"forward": forward, "gradients": gradients}[way]
        with jax.set_mesh(mesh):
            lowered = jax.jit(function).lower(q, k, k, context.scalars, context, make.ints())
            compiled = lowered.compile()
        text = compiled.as_text()
        assert text.count("tpu_custom_call") == (1 if way == "forward" else 2)
        assert CompiledText(text).copies(held(part.heads) // layers) == []
        assert compiled.memory_analysis().temp_size_in_bytes < held(part.heads) / (10 if way == "forward" else 5)


PROGRAMS: dict[str, dict[str, Any]] = {
    "synthesize": {"program": "synthesize", "prompt_tokens": 64},
    # A pool of four layers that fits into a chip's fast memory is brought there to be written; no real one does.
    "synthesize in chunks": {"program": "synthesize", "prompt_tokens": 600, "branch_tokens": 16_384},
    "decode": {"program": "decode"},
    "decode int8": {"program": "decode", "cache_dtype": "int8"},
    "workers": {"program": "workers"},
}
# heads of 128 in the split layout, heads of 64 packed
STEPS = [("qwen3-0.6b", name) for name in ("synthesize in chunks", "decode", "workers")]
STEPS += [("llama-3.2-1b", name) for name in ("synthesize", "decode int8", "workers")]

CASES = [(topology, *case) for topology in ("v5e-8", "v5p-16", "v6e-8", "tpu7x-8") for case in STEPS]
FAST = [("v5e-8", *case) for case in STEPS[-3:]]
FULL = [("v6e-8", *STEPS[0]), ("tpu7x-8", *STEPS[1]), ("v5p-16", *STEPS[2])]


class TestStep:
    """The whole step of a model, four layers of it, over long branches, on eight devices of each generation."""

    @pytest.fixture(autouse=True)
    def four_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("qwen3-0.6b", "llama-3.2-1b"):
            config = preset(name).config.model_copy(update={"layers": 4, "vocab_size": 1024})
            monkeypatch.setitem(PRESETS, name, Preset(config, "none"))

    @pytest.mark.parametrize(("topology", "model", "program"), exhaustive_but(CASES, fast=FAST, full=FULL))
    def test_holds_and_sends_nothing_large(self, topology: str, model: str, program: str) -> None:
        asked = {"topology": topology, "model": model, "mesh": "branch=4,tensor=2", "branches": 8, **PROGRAMS[program]}
        facts = report(workload(asked)).facts
        newest = topology.startswith("tpu7x")
        assert facts["ok"] and facts["devices"] == 8
        assert facts["pallas_calls"] == 1, "one kernel, in the scan over layers"
        assert facts["cache_sized_copies"] == []
        largest = max(each["largest"] for each in facts["collectives"].values())
        assert largest < facts["layer_cache_bytes"] / 4, "no cache and no weight is gathered"
        assert facts["alias_bytes"] == facts["pool_bytes"] > 0, "the donated pool is not written in place"
        assert facts["pool_bytes"] == facts["branch_cache_bytes"] + facts["own_cache_bytes"]
        # For the newest generation XLA changes the layout of the weights first; for no other does it copy anything.
        assert newest or facts["weight_relayouts"] == []
        relaid = facts["weight_bytes"] if newest else 0
        assert facts["temp_bytes"] < facts["layer_cache_bytes"] + relaid
        merges = sum(each["count"] for kind, each in facts["collectives"].items() if kind == "all-gather")
        if program.startswith("decode"):
            assert merges == 4, "partial results merge in one collective a layer"
        if program == "workers":
            assert merges <= 2, "rows that read their own block only merge nothing; the sampled tokens are gathered"


@pytest.mark.slow
def test_a_training_step_compiles() -> None:
    asked = {"model": "smollm2-135m", "program": "train", "questions": 4, "branches": 2, "branch_tokens": 128}
    asked |= {"topology": "v5e-4", "prompt_tokens": 64, "new_tokens": 64, "mesh": "data=2,fsdp=2"}
    facts = report(workload(asked)).facts
    assert facts["ok"], facts["advice"]
    assert facts["pallas_calls"] >= 3, "branches, the way forth and the way back run the kernel"
    largest = facts["collectives"]["all-gather"]["largest"]
    assert largest < facts["weight_bytes"] / 2, "weights are gathered layer by layer"
