"""One decoder, however its tokens are cut into calls; and no field of its config without an effect."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psynth_jax.config import Config, DecoderConfig, LinearRope, Llama3Rope, LocalLayers, PlainRope, YarnRope
from psynth_jax.convert.rules import gguf_rules
from psynth_jax.errors import CheckpointError, ContextLengthError
from psynth_jax.kv.pool import Places, write_tokens
from psynth_jax.nn.adapter import FACTOR_LETTERS, Lora
from psynth_jax.nn.conditioning import fold
from psynth_jax.nn.decoder import Decoder, parameter_shapes
from psynth_jax.nn.layers import branch_angles, token_angles
from psynth_jax.ops.branch_attention import Context, ContextPart, Runs
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.rope import rotate
from psynth_jax.synthesis.inputs import check_window
from tests.tiny import random_lora, tiny_config, tiny_decoder, tiny_model, token_ids

NOISE = 2e-5  # of float32 logits, whose size is about 1
DIFFERENT = 1e-2
SLOTS = 64
TOKENS = np.array([token_ids(seed, 23) for seed in range(3)], np.int32)


# Many small programs are compiled here and each runs once: spend no time on making them fast.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnames=("fresh", "implementation"), compiler_options=QUICK_TO_COMPILE)
def run(
    decoder: Decoder,
    tokens: Any,
    heads: CachedHeads,
    start: Any,
    count: Any,
    offset: Any,
    lora: Lora | None = None,
    scale: Any = None,
    *,
    fresh: bool = False,
    implementation: Any = "auto",
) -> tuple[Any, CachedHeads]:
    """Run `count` new tokens of every row behind the `start` that it has in `heads`; fresh: without a look at them."""
    rows, size = tokens.shape
    context = None if fresh else own_tokens(decoder, heads, start, offset)
    hidden, k, v = decoder(tokens, offset + start, context, lora, scale, implementation=implementation)
    slot = jnp.arange(size)
    nowhere = SLOTS + jnp.arange(rows * size).reshape(rows, size)
    slots = jnp.where(slot < count[:, None], start[:, None] + slot, nowhere)
    return decoder.logits(hidden), write_tokens(heads, k, v, Places(jnp.arange(rows), slots))


def own_tokens(decoder: Decoder, heads: CachedHeads, length: Any, position: Any) -> Context:
    """Every row reads the first `length [B]` slots of its own row of `heads`, as they are."""
    rows = jnp.arange(heads.rows)[:, None]
    zero, one = 0 * rows, 0 * rows + 1
    runs = Runs(rows, zero, length[:, None], zero, zero + position[:, None], one[:, 0])
    return Context((ContextPart(heads, runs),), *fold(None, zero, zero, one != 0, decoder.config), position + length)


def empty_heads(decoder: Decoder, rows: int) -> CachedHeads:
    config = decoder.config
    shape = (config.layers, rows, config.kv_heads, SLOTS, config.head_width)
    return CachedHeads.allocate(shape, decoder.dtype, packed=False)


def filled(heads: CachedHeads) -> list[int]:
    """How many slots of every row have been written; all behind them are as they were."""
    written = np.asarray(heads.k != 0).any(axis=(0, 2, 4))
    lengths = written.sum(axis=1)
    assert all(row[:length].all() for row, length in zip(written, lengths, strict=True))
    return lengths.tolist()


def row_values(value: int, rows: int) -> np.ndarray:
    return np.full(rows, value, np.int32)


def full(decoder: Decoder, tokens: np.ndarray = TOKENS, **options: Any) -> np.ndarray:
    """Logits `[B, T, V]` of whole rows in one call."""
    rows, length = tokens.shape
    zero = row_values(0, rows)
    cache = empty_heads(decoder, rows)
    return np.asarray(run(decoder, tokens, cache, zero, row_values(length, rows), zero, fresh=True, **options)[0])


def in_chunks(decoder: Decoder, sizes: list[int], first_fresh: bool = True) -> np.ndarray:
    rows, start, found = TOKENS.shape[0], 0, []
    cache = empty_heads(decoder, rows)
    for size in sizes:
        tokens = TOKENS[:, start : start + size]
        at, zero = row_values(start, rows), row_values(0, rows)
        logits, cache = run(decoder, tokens, cache, at, row_values(size, rows), zero, fresh=first_fresh and start == 0)
        found.append(np.asarray(logits))
        start += size
    assert start == TOKENS.shape[1]
    assert filled(cache) == [start] * rows
    return np.concatenate(found, axis=1)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder(tiny_config())


@pytest.fixture(scope="module")
def expected(decoder: Decoder) -> np.ndarray:
    return full(decoder)


@pytest.mark.parametrize(
    ("sizes", "first_fresh"),
    [([11, *[1] * 12], True), ([11, 12], True), ([1] * 23, False)],
    ids=["prefill_and_decode", "chunks", "decode_only"],
)
def test_cut_into_calls_it_computes_the_same(
    decoder: Decoder, expected: np.ndarray, sizes: list[int], first_fresh: bool
) -> None:
    np.testing.assert_allclose(in_chunks(decoder, sizes, first_fresh), expected, atol=NOISE, rtol=0)


def test_ragged_rows_compute_what_each_computes_alone(decoder: Decoder, expected: np.ndarray) -> None:
    """Three rows with prompts of 2, 11 and 7 tokens, padded to 11, then three more tokens of each."""
    lengths, width = np.array([2, 11, 7], np.int32), 11
    prompts = np.where(np.arange(width) < lengths[:, None], TOKENS[:, :width], 96)
    zero = row_values(0, 3)
    logits, cache = run(decoder, prompts, empty_heads(decoder, 3), zero, lengths, zero, fresh=True)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], atol=NOISE, rtol=0)
    start = lengths.copy()
    for _ in range(3):
        tokens = TOKENS[np.arange(3), start][:, None]
        logits, cache = run(decoder, tokens, cache, start, row_values(1, 3), zero)
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), start], atol=NOISE, rtol=0)
        start = start + 1
    assert filled(cache) == (lengths + 3).tolist()


def test_an_idle_row_writes_nothing_and_changes_nothing(decoder: Decoder, expected: np.ndarray) -> None:
    start, zero = row_values(11, 3), row_values(0, 3)
    _, cache = run(decoder, TOKENS[:, :11], empty_heads(decoder, 3), zero, start, zero, fresh=True)
    feeding = np.array([1, 0, 1], np.int32)
    _, cache = run(decoder, np.where(feeding, TOKENS[:, 11], 5)[:, None], cache, start, feeding, zero)
    assert filled(cache) == [12, 11, 12]
    start = start + feeding
    logits, _ = run(decoder, TOKENS[np.arange(3), start][:, None], cache, start, row_values(1, 3), zero)
    np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), start], atol=NOISE, rtol=0)


@pytest.mark.parametrize("count", [1, 12])
def test_unused_slots_may_hold_nan(decoder: Decoder, expected: np.ndarray, count: int) -> None:
    zero, start = row_values(0, 3), row_values(11, 3)
    _, cache = run(decoder, TOKENS[:, :11], empty_heads(decoder, 3), zero, start, zero, fresh=True)
    unused = np.arange(SLOTS)[:, None] >= 11
    poisoned = jax.tree.map(lambda heads: jnp.where(unused, jnp.nan, heads), cache)
    logits, _ = run(decoder, TOKENS[:, 11 : 11 + count], poisoned, start, row_values(count, 3), zero)
    np.testing.assert_allclose(logits, expected[:, 11 : 11 + count], atol=NOISE, rtol=0)


def test_a_row_that_has_nothing_yet_reads_nothing(decoder: Decoder, expected: np.ndarray) -> None:
    poisoned = jax.tree.map(lambda heads: jnp.full_like(heads, jnp.nan), empty_heads(decoder, 3))
    zero = row_values(0, 3)
    logits, _ = run(decoder, TOKENS, poisoned, zero, row_values(23, 3), zero)
    np.testing.assert_allclose(logits, expected, atol=NOISE, rtol=0)


def test_only_distances_between_positions_matter(decoder: Decoder, expected: np.ndarray) -> None:
    """RoPE is relative, so an offset changes nothing of a row read alone, as long as all its tokens have it."""
    zero, cache = row_values(0, 3), empty_heads(decoder, 3)
    logits, moved = run(decoder, TOKENS, cache, zero, row_values(23, 3), row_values(37, 3), fresh=True)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    _, at_zero = run(decoder, TOKENS, cache, zero, row_values(23, 3), zero, fresh=True)
    assert np.abs(moved.k - at_zero.k).max() > DIFFERENT


@pytest.fixture(scope="module")
def lora() -> Lora:
    return random_lora(tiny_config(), 5)


@pytest.fixture(scope="module")
def adapted(decoder: Decoder, lora: Lora) -> np.ndarray:
    return full(decoder, lora=lora)


class TestAdapter:
    def test_changes_the_output(self, expected: np.ndarray, adapted: np.ndarray) -> None:
        assert np.abs(adapted - expected).max() > DIFFERENT

    @pytest.mark.parametrize("scale", [[0, 0, 0], [1, 1, 1], [0, 1, 0]])
    def test_scale_chooses_per_row(
        self, decoder: Decoder, lora: Lora, expected: np.ndarray, adapted: np.ndarray, scale: list[int]
    ) -> None:
        logits = full(decoder, lora=lora, scale=np.array(scale, np.float32))
        wanted = np.where(np.array(scale)[:, None, None] == 1, adapted, expected)
        np.testing.assert_allclose(logits, wanted, atol=NOISE, rtol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("target", FACTOR_LETTERS)
    def test_every_target_matters(self, decoder: Decoder, expected: np.ndarray, target: str) -> None:
        one = full(decoder, lora=random_lora(tiny_config(), 5, targets=[target]), implementation="reference")
        assert np.abs(one - expected).max() > DIFFERENT

    def test_a_new_one_changes_nothing(self, decoder: Decoder, expected: np.ndarray) -> None:
        fresh = Lora.initialise(tiny_config(), 4, 8.0, jax.random.key(0), tuple(FACTOR_LETTERS))
        np.testing.assert_array_equal(full(decoder, lora=fresh), expected)

    def test_equals_weights_with_the_update_merged_in(self, decoder: Decoder, lora: Lora, adapted: np.ndarray) -> None:
        parameters = decoder.parameters()
        products = {"q": "lda,lanh->ldnh", "k": "lda,lakh->ldkh", "v": "lda,lakh->ldkh", "o": "lnha,lad->lnhd"}
        products |= {"gate": "lda,laf->ldf", "up": "lda,laf->ldf", "down": "lfa,lad->lfd"}
        for target, letters in products.items():
            update = np.einsum(letters, np.asarray(lora.down[target], np.float64), np.asarray(lora.up[target], np.float64))
            parameters[f"layers.{target}"] = jnp.asarray(parameters[f"layers.{target}"] + float(lora.scale) * update)
        merged = Decoder(decoder.config, {name: value.astype(jnp.float32) for name, value in parameters.items()})
        np.testing.assert_allclose(full(merged), adapted, atol=1e-4, rtol=0)


LLAMA3 = Llama3Rope(theta=1e4, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=64)
# With these numbers the ramp begins at plane 2.5 (2 when truncated) and ends at plane 4.0 (5 when truncated) of 5.
YARN = YarnRope(
    theta=100.0, factor=8.0, original_positions=256, beta_fast=4.0, beta_slow=1.0, attention_factor=1.2, truncate=True
)
EVERYTHING: dict[str, Any] = {"qk_norm": True, "qkv_bias": True, "o_bias": True, "rope": YARN, "layers": 2}

# Field -> another value.  A field of the config that is not in one of these tables fails the tests below.
FLIPPED: dict[str, Any] = {
    "vocab_size": 89,
    "width": 26,
    "layers": 3,
    "heads": 4,
    "kv_heads": 3,
    "head_width": 12,
    "mlp_width": 37,
    "norm_eps": 0.1,
    "rope": PlainRope(theta=1e4),
    "qk_norm": False,
    "qkv_bias": False,
    "o_bias": False,
    "tied_head": True,
    "activation": "gelu_tanh",
    "query_scale": 0.7,
    "scaled_embedding": True,
    "norms_from_one": True,
    "norms_after": True,
    "local": LocalLayers(window=64, global_every=2, rope=PlainRope(theta=1e4)),
}
OF_NO_DECODER = {"family", "max_positions"}  # they choose rules of conversion, and what is refused: tested below
FLIPPED_LOCAL: dict[str, Any] = {"window": 5, "global_every": 3, "rope": PlainRope(theta=3e3)}
FLIPPED_ROPE: dict[type[Config], tuple[Config, dict[str, Any]]] = {
    PlainRope: (PlainRope(theta=1e4), {"theta": 3e3, "kind": LLAMA3}),
    LinearRope: (LinearRope(theta=1e4, factor=4.0), {"theta": 3e3, "factor": 3.0, "kind": PlainRope(theta=1e4)}),
    Llama3Rope: (
        LLAMA3,
        {
            "theta": 3e3,
            "factor": 8.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 16.0,
            "original_positions": 256,
            "kind": YARN,
        },
    ),
    YarnRope: (
        YARN,
        {
            "theta": 3e3,
            "factor": 3.0,
            "original_positions": 1024,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.0,
            "truncate": False,
            "kind": PlainRope(theta=1e4),
        },
    ),
}


MIXTURE: dict[str, Any] = {"experts": 4, "experts_per_token": 2}
FLIPPED_MIXTURE: dict[str, Any] = {"experts": 5, "experts_per_token": 3, "norm_expert_weights": True}


@functools.cache
def logits_of(config: DecoderConfig) -> np.ndarray:
    """The reference form, because it compiles fastest.  Parameters of the same name are the same for every config."""
    return full(tiny_decoder(config), TOKENS[:1] % 89, implementation="reference")


def assert_different(config: DecoderConfig, other: DecoderConfig) -> None:
    one, two = logits_of(config), logits_of(other)
    assert one.shape != two.shape or np.abs(one - two).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("field", sorted(set(DecoderConfig.model_fields) - OF_NO_DECODER))
def test_every_field_of_the_config_changes_the_output(field: str) -> None:
    base = EVERYTHING | (MIXTURE if field in FLIPPED_MIXTURE else {})
    assert_different(tiny_config(**base), tiny_config(**{**base, field: (FLIPPED | FLIPPED_MIXTURE)[field]}))


@pytest.mark.parametrize("field", LocalLayers.model_fields)
def test_every_field_of_local_layers_changes_the_output(field: str) -> None:
    local = LocalLayers(window=3, global_every=2, rope=PlainRope(theta=1e4))
    other = local.model_copy(update={field: FLIPPED_LOCAL[field]})
    assert_different(tiny_config(local=local), tiny_config(local=other))


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in FLIPPED_ROPE for field in kind.model_fields], ids=lambda x: str(x)[:40]
)
def test_every_field_of_a_rope_changes_the_rotation(kind: type[Config], field: str) -> None:
    rope, values = FLIPPED_ROPE[kind]
    other = values[field] if field == "kind" else rope.model_copy(update={field: values[field]})
    positions = np.arange(40)[None]
    one, two = (np.concatenate(token_angles(r, 10, positions)) for r in (rope, other))
    assert np.abs(one - two).max() > DIFFERENT


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_a_branch_is_turned_by_the_tokens_own_frequencies(rope: Any) -> None:
    """Turning a token at p back by s gives the token at p - s, attention factor included, once."""
    vector = np.random.default_rng(0).standard_normal((1, 1, 1, 10)).astype(np.float32)
    cos, sin = branch_angles(rope, 10, np.array([[29]]))
    turned = rotate(rotate(vector, *token_angles(rope, 10, np.array([[34]]))), cos[:, :, None], -sin[:, :, None])
    np.testing.assert_allclose(turned, rotate(vector, *token_angles(rope, 10, np.array([[5]]))), atol=1e-5)


def test_family_chooses_the_names_in_a_checkpoint() -> None:
    config = tiny_config(qk_norm=True)
    assert gguf_rules(config) != gguf_rules(config.model_copy(update={"family": "qwen3"}))


def test_max_positions_chooses_what_is_refused() -> None:
    check_window(tiny_model(max_positions=40), 10, 20, 10, "it")
    with pytest.raises(ContextLengthError):
        check_window(tiny_model(max_positions=39), 10, 20, 10, "it")


class TestParameters:
    def test_all_that_does_not_fit_is_listed(self) -> None:
        config = tiny_config(qk_norm=True)
        parameters = {name: jnp.zeros(shape) for name, shape in parameter_shapes(config).items()}
        del parameters["layers.q_norm"], parameters["head"]
        parameters["layers.surplus"] = jnp.zeros(3)
        parameters["layers.q"] = parameters["layers.q"].swapaxes(2, 3)
        with pytest.raises(CheckpointError) as caught:
            Decoder(config, parameters)
        message = str(caught.value)
        for problem in ("missing layers.q_norm", "missing head", "extra layers.surplus"):
            assert problem in message
        assert "layers.q has shape [3, 22, 10, 6], the config says [3, 22, 6, 10]" in message
        assert "\n" not in message

    def test_come_out_as_they_went_in(self) -> None:
        config = tiny_config(qk_norm=True, qkv_bias=True, o_bias=True)
        given = tiny_decoder(config).parameters()
        taken = Decoder(config, given).parameters()
        assert list(taken) == list(parameter_shapes(config))
        assert all(taken[name] is given[name] for name in given)

    def test_random_ones_depend_on_the_seed_and_have_the_dtype(self) -> None:
        equal = dict.fromkeys(("vocab_size", "width", "mlp_width"), 8) | dict.fromkeys(("heads", "kv_heads"), 2)
        config = tiny_config(**equal, head_width=4, layers=1, tied_head=True)  # few shapes: each costs a compilation
        one, again, other = (Decoder.random(config, seed, jnp.bfloat16) for seed in (1, 1, 2))
        assert {value.dtype for value in jax.tree.leaves(nnx.state(one))} == {jnp.dtype(jnp.bfloat16)}
        assert one.dtype == jnp.bfloat16 and "head" not in one.parameters()
        for name, value in one.parameters().items():
            np.testing.assert_array_equal(value, again.parameters()[name])
            assert not np.array_equal(value, other.parameters()[name]), name
