"""The Pallas kernel for GPUs: its arithmetic against the oracle, and its lowering to Triton.

On a CPU the kernel is lowered at real shapes, and computes small cases in interpret mode; on a GPU it computes them there.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.errors import InputError
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import (
    Context,
    ContextPart,
    Runs,
    api,
    pallas_gpu,
    reference,
    xla,
)
from psynth_jax.ops.branch_attention.gpu_blocks import shares
from psynth_jax.ops.branch_attention.gpu_device import Device
from psynth_jax.ops.branch_attention.gpu_tiles import forward_tiles, shared_bytes
from psynth_jax.ops.branch_attention.worklist import joined_runs
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, empty, merge, merge_stacked
from tests.ops.forms import poisoned, reads_own, runs_of, whole


@pytest.fixture(autouse=True)
def _exact_oracle() -> Iterator[None]:
    """GPUs multiply float32 matrices in tf32 unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


L, B, W, K, G, S, H = 2, 2, 3, 2, 3, 75, 32
SCALE = 0.3
INTERPRET = jax.default_backend() != "gpu"
FEW = Device(cores=1)  # so few that nothing is split


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def runs() -> Runs:
    """Return spans of 1 to 75 slots, rows shuffled and repeated, several runs of a row and of a branch, absent ones."""
    return runs_of(
        [
            [(3, 0, 6, 0), (0, 10, 65, 1), (3, 9, 40, 2), (0, 0, 0, 0), (1, 74, 1, 1)],
            [(2, 3, 72, 1), (1, 0, 75, 2), (0, 18, 1, 2), (0, 0, 0, 0), (2, 0, 2, 0)],
        ]
    )


def case(tokens: int, *, poison: bool = False, two_parts: bool = False, branches: bool = True):
    rng = np.random.default_rng(3)
    q, k, v = normal(rng, B, tokens, K * G, H), normal(rng, B, tokens, K, H), normal(rng, B, tokens, K, H)
    start = np.array([5, S], np.int32)
    own, part = ([normal(rng, L, rows, K, S, H) for _ in range(2)] for rows in (B, 4))
    read = runs()
    if poison:
        for heads in part:
            poisoned(heads, read)
        for heads in own:
            heads[:, 0, :, start[0] :] = np.nan
    cos, sin = rope.angles(jnp.asarray(rng.integers(0, 50, (B, W))), rope.plain_frequencies(1e4, H))
    scalars = jnp.asarray(1 + 0.3 * normal(rng, L, B, W, 4))
    parts = (ContextPart(CachedHeads(*part), read),)
    if two_parts:
        parts += (ContextPart(CachedHeads(*own), dataclasses.replace(read, row=read.row % B)),)
    context = Context(parts, cos, sin, scalars, start + 50) if branches else None
    return jax.tree.map(jnp.asarray, (q, k, v, reads_own(CachedHeads(*own), start, context)))


def in_heads(dtype, arguments):
    """Store the caches of a case in another dtype."""
    *new, context = arguments

    def stored(heads: CachedHeads) -> CachedHeads:
        shape = (L, heads.rows, K, S, H)
        return CachedHeads.allocate(shape, dtype, packed=False).stored(heads.k, heads.v)

    parts = tuple(dataclasses.replace(part, heads=stored(part.heads)) for part in context.parts)
    return (*new, dataclasses.replace(context, parts=parts))


def compiled(attend, **options):
    return jax.jit(lambda layer, *arguments: whole(attend, **options)(*arguments, layer, SCALE))


shared = functools.cache(compiled)  # one compilation for all calls of a shape


def kernel(*arguments, layer=1):
    return shared(pallas_gpu.attend, interpret=INTERPRET)(layer, *arguments)


def oracle(*arguments, layer=1):
    return shared(reference.attend)(layer, *arguments)


@pytest.mark.parametrize(("tokens", "two_parts"), [(1, True), (2, False), (70, False)])
def test_it_is_the_oracle(tokens: int, two_parts: bool) -> None:
    arguments = case(tokens, two_parts=two_parts)
    np.testing.assert_allclose(kernel(*arguments), oracle(*arguments), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1])
def test_unsplit_it_is_the_oracle(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pallas_gpu, "local_device", lambda: FEW)
    arguments = case(9)
    unsplit = compiled(pallas_gpu.attend, interpret=INTERPRET)
    np.testing.assert_allclose(unsplit(layer, *arguments), oracle(*arguments, layer=layer), atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 9])
def test_slots_that_are_not_read_may_hold_nan(tokens: int) -> None:
    np.testing.assert_array_equal(kernel(*case(tokens, poison=True)), kernel(*case(tokens)))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 9])
def test_int8_caches(tokens: int) -> None:
    """The kernel multiplies scales in; the oracle reads the same numbers back."""
    arguments = in_heads(jnp.int8, case(tokens))
    np.testing.assert_allclose(kernel(*arguments), oracle(*arguments), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype) -> None:
    """Logits and weights are rounded on their way into the products, and nothing else is."""
    q, k, v, context = in_heads(dtype, case(9))
    arguments = (q.astype(dtype), k.astype(dtype), v.astype(dtype), context)
    out = kernel(*arguments)
    assert out.dtype == dtype
    error = jnp.abs(out.astype(jnp.float32) - oracle(*arguments).astype(jnp.float32)).max()
    assert error < 4 * jnp.finfo(dtype).eps


def test_alone_it_is_causal_attention() -> None:
    q, k, v, _ = case(40)
    np.testing.assert_allclose(kernel(q, k, v, None), oracle(q, k, v, None), atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 11])
@pytest.mark.slow
def test_the_backward_pass(tokens: int) -> None:
    q, k, v, context = in_heads(jnp.int8, case(tokens))
    weight = jnp.asarray(normal(np.random.default_rng(8), *q.shape))

    def gradients(attend, **options):
        def loss(q, k, v, scalars):
            mapped = dataclasses.replace(context, scalars=scalars)
            return (weight * whole(attend, **options)(q, k, v, mapped, 1, SCALE)).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, k, v, context.scalars)

    ours, theirs = gradients(pallas_gpu.attend, interpret=INTERPRET), gradients(reference.attend)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.slow
def test_the_backward_pass_without_branches_and_with_nan() -> None:
    q, k, v, own = case(40, poison=True, branches=False)
    loss = lambda f: jax.grad(lambda *new: (f(*new, own) ** 2).sum(), (0, 1, 2))(q, k, v)  # noqa: E731
    for one, other in zip(loss(kernel), loss(oracle), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_splits_share_out_all_steps() -> None:
    read = jax.tree.map(jnp.asarray, runs())
    together, reach = joined_runs([read], jnp.zeros(B, jnp.int32), None)
    table, cuts = (np.asarray(array) for array in shares(together, reach, 16, 4))
    np.testing.assert_array_equal(table[..., 5] - table[..., 4], -(-np.asarray(read.present().length) // 16))
    for row in range(B):
        low, high, before, after = cuts[row].T
        assert low[0] == 0 and high[-1] == table[row, -1, 5] and (low[1:] == high[:-1]).all()
        assert (high - low).max() - (high - low).min() <= 1
        met = [
            {c for c in range(5) if table[row, c, 4] < h and table[row, c, 5] > l} for l, h in zip(low, high, strict=True)
        ]
        assert all(columns <= set(range(b, a)) for columns, b, a in zip(met, before, after, strict=True))


def test_merging_a_stack_is_merging_one_by_one() -> None:
    rng = np.random.default_rng(0)
    parts = [Partial(normal(rng, 2, 5, 4), normal(rng, 2, 5), np.abs(normal(rng, 2, 5))) for _ in range(3)]
    parts.append(empty((2, 5), 4))
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = merge(one_by_one, part)
    stacked = merge_stacked(jax.tree.map(lambda *x: jnp.stack(x), *parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stacked, one_by_one)


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize(("rows", "itemsize", "cached"), [(4, 2, 2), (4, 2, 1), (1024, 2, 2), (4096, 4, 4)])
def test_tiles_fit(rows: int, itemsize: int, cached: int, width: int, shared: int) -> None:
    tiles = forward_tiles(rows, width, itemsize, (cached,), 8, 32768, Device(132, shared))
    assert shared_bytes(tiles.rows, tiles.slots, tiles.stages, width, itemsize, (cached,)) <= shared
    assert min(tiles.rows, tiles.slots) >= 16 and tiles.rows & (tiles.rows - 1) == 0


def test_decode_fills_the_device() -> None:
    tiles = forward_tiles(4, 128, 2, (2,), 8, 32768, Device(132, 227 << 10))
    assert 132 < 8 * tiles.splits <= 2 * 132


# ------------------------------------------------------------------------------------------------------ lowering for CUDA


def abstract_gpu() -> AbstractContextManager[object]:
    """Name a GPU to lower for: jax 0.12 wants to know it, jax 0.10 takes it as well."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def real_shapes(tokens: int, width: int, cache_dtype=jnp.bfloat16):
    """Return a call of an 8B model on 8 branches of 4096 slots, as shapes."""
    layers, rows, kv_heads, group, slots = 36, 8, 8, 4, 4096
    array = jax.ShapeDtypeStruct
    new = array((1, tokens, kv_heads, width), jnp.bfloat16)
    integers = array((1, rows), jnp.int32)

    def cache(rows: int, slots: int) -> CachedHeads:
        heads = array((layers, rows, kv_heads, slots, width), cache_dtype)
        scales = array((layers, rows, kv_heads, 1, slots), jnp.float32)
        return CachedHeads(heads, heads, *([scales] * 2 if cache_dtype == jnp.int8 else []))

    angle = array((1, rows, width // 2), jnp.float32)
    scalars = array((layers, 1, rows, 4), jnp.float32)
    used = array((1,), jnp.int32)
    part = ContextPart(cache(rows, slots), Runs(*[integers] * 5, used))
    own = ContextPart(cache(1, 1024), Runs(*[array((1, 1), jnp.int32)] * 5, used))
    q = array((1, tokens, kv_heads * group, width), jnp.bfloat16)
    return q, new, new, Context((own, part), angle, angle, scalars, used), array((), jnp.int32)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("tokens", [1, 256])
@pytest.mark.parametrize("cache_dtype", [jnp.bfloat16, jnp.int8])
def test_it_lowers_for_cuda(tokens: int, width: int, cache_dtype) -> None:
    arguments = real_shapes(tokens, width, cache_dtype)
    with abstract_gpu():
        lowered = jax.jit(lambda *a: whole(pallas_gpu.attend)(*a, SCALE)).trace(*arguments).lower(
            lowering_platforms=("cuda",)
        )  # fmt: skip
    text = lowered.as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1
    made = [line for line in text.splitlines() if "= stablehlo." in line and "x4096x" in line.split("->")[-1]]
    assert made == []  # a cache is an operand, never the result of an operation


@pytest.mark.parametrize("width", [64, 128])
def test_the_backward_pass_lowers_for_cuda(width: int) -> None:
    q, k, v, context, layer = real_shapes(256, width)

    def loss(q, k, v, scalars, context, layer):
        mapped = dataclasses.replace(context, scalars=scalars)
        return whole(pallas_gpu.attend)(q, k, v, mapped, layer, SCALE).astype(jnp.float32).sum()

    with abstract_gpu():
        traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(q, k, v, context.scalars, context, layer)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 3


# ---------------------------------------------------------------------------------------------------------- what it lacks


def test_what_it_lacks_is_refused_by_name() -> None:
    q, k, v, context = case(1, branches=False)

    def reading(heads: CachedHeads) -> Context:
        return dataclasses.replace(context, parts=(ContextPart(heads, context.parts[0].runs),))

    with pytest.raises(InputError, match="heads of width 24; it takes 32, 64, 128, 256"):
        kernel(q[..., :24], k[..., :24], v[..., :24], None)
    packed = CachedHeads.allocate((L, B, K, S, H), jnp.float32, packed=True)
    with pytest.raises(InputError, match="one packed array, which is for TPUs"):
        kernel(q, k, v, reading(packed))
    with pytest.raises(InputError, match="queries in int32; it takes float32, bfloat16, float16"):
        kernel(q.astype(jnp.int32), k, v, None)
    with pytest.raises(InputError, match="caches in float8_e4m3fn"):
        kernel(q, k, v, reading(CachedHeads(*(jnp.zeros((L, B, K, S, H), jnp.float8_e4m3fn),) * 2)))


@pytest.mark.parametrize(("capability", "taken"), [("9.0", True), ("8.0", True), ("7.5", False), ("gfx942", False)])
def test_auto_takes_it_on_a_gpu_that_runs_it(capability: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = types.SimpleNamespace(platform="gpu", device_kind="some GPU", compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    q, _, _, context = case(1)
    assert api._module("auto", q, context) is (pallas_gpu if taken else xla)
    assert api._module("auto", q[..., :24], None) is xla


def test_an_int8_cache_that_offsets_cannot_reach_is_refused() -> None:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), case(1, branches=False))
    q, k, v, context = shapes
    heads = jax.ShapeDtypeStruct((L, B, K, 2**24, H), jnp.int8)
    scales = jax.ShapeDtypeStruct((L, B, K, 1, 2**24), jnp.float32)
    part = ContextPart(CachedHeads(heads, heads, scales, scales), context.parts[0].runs)
    context = dataclasses.replace(context, parts=(part,))
    with pytest.raises(InputError, match=r"int8 cache of 4.0 GiB"):
        jax.eval_shape(lambda *a: whole(pallas_gpu.attend)(*a, 0, SCALE), q, k, v, context)
