"""The mixture of experts against its definition, token by token, and on meshes against one device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.config import DecoderConfig
from psynth_jax.errors import ConfigError
from psynth_jax.nn.adapter import targets_of
from psynth_jax.nn.decoder import numbers_per_token, parameter_shapes, shardings_of
from psynth_jax.nn.experts import expert_mlp
from psynth_jax.sharding import check_fits
from tests.tiny import random_lora, random_mapper, tiny_config, tiny_model, token_ids


def moe_config(experts: int = 6, per_token: int = 2, normalised: bool = True, **changed: Any) -> DecoderConfig:
    mixture = {"experts": experts, "experts_per_token": per_token, "norm_expert_weights": normalised}
    return tiny_config(family="qwen3_moe", qk_norm=True, **mixture, **changed)


def drawn(config: DecoderConfig, rows: int = 8, tokens: int = 5) -> tuple[jax.Array, dict[str, jax.Array]]:
    rng = np.random.default_rng(config.experts)
    shapes = {n.removeprefix("layers."): s[1:] for n, s in parameter_shapes(config).items() if n.startswith("layers.")}
    layer = {n: jnp.asarray(rng.standard_normal(shapes[n]) / 4, jnp.float32) for n in ("router", "gate", "up", "down")}
    return jnp.asarray(rng.standard_normal((rows, tokens, config.width)), jnp.float32), layer


def by_definition(x: np.ndarray, layer: dict[str, np.ndarray], config: DecoderConfig) -> np.ndarray:
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape[:2]):
        logits = x[at] @ layer["router"]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        chosen = np.argsort(-shares)[: config.experts_per_token]
        total = shares[chosen].sum() if config.norm_expert_weights else 1.0
        for e in chosen:
            gate = x[at] @ layer["gate"][e]
            hidden = gate / (1 + np.exp(-gate)) * (x[at] @ layer["up"][e])
            out[at] += shares[e] / total * (hidden @ layer["down"][e])
    return out


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("experts", "per_token"), [(6, 2), (5, 5), (9, 1)])
def test_is_what_it_is_defined_to_be(experts: int, per_token: int, normalised: bool) -> None:
    config = moe_config(experts, per_token, normalised)
    x, layer = drawn(config)
    expected = by_definition(np.asarray(x, np.float64), {n: np.asarray(w, np.float64) for n, w in layer.items()}, config)
    np.testing.assert_allclose(expert_mlp(x, layer, config), expected, atol=1e-5)


# experts over tensor, or, where it does not divide them, their width
@pytest.mark.slow
@pytest.mark.parametrize(("experts", "width"), [(6, 31), (5, 12)])
@pytest.mark.parametrize(
    ("axes", "row_axes", "gathered"),
    [
        ("data=2,tensor=2,fsdp=2", ("data",), False),
        ("data=2,tensor=2,fsdp=2", ("data", "fsdp"), True),
        ("branch=4,tensor=2", ("branch",), False),
        ("branch=4,tensor=2", (), False),
    ],
)
def test_on_a_mesh_it_is_the_same_with_its_gradients(
    axes: str, row_axes: tuple[str, ...], gathered: bool, experts: int, width: int
) -> None:
    config, mesh = moe_config(experts, mlp_width=width), ps.make_mesh(axes)
    x, layer = drawn(config)
    towards = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32)

    def loss(x: jax.Array, layer: dict[str, jax.Array], *where: Any) -> jax.Array:
        return (expert_mlp(x, layer, config, *where) * towards).sum()

    expected = jax.value_and_grad(loss, (0, 1))(x, layer)
    found = jax.jit(jax.value_and_grad(lambda x, w: loss(x, w, mesh, row_axes, gathered), (0, 1)))(x, layer)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_tokens_of_other_devices_cannot_leak_in() -> None:
    """What stands behind the last group is whatever the device left there: it must not be read."""
    config, mesh = moe_config(6), ps.make_mesh("branch=4,tensor=2")
    x, layer = drawn(config)
    layer["router"] = (
        layer["router"].at[:, 3:].add(-100 * jnp.sign(x.sum())).at[:, 3:].set(-1e4)
    )  # the second half is never chosen
    x = jnp.abs(x)
    found = jax.jit(lambda x: expert_mlp(x, layer, config, mesh))(x)
    np.testing.assert_allclose(found, expert_mlp(x, layer, config), atol=1e-4)


def test_how_it_lies_on_a_mesh() -> None:
    mesh = ps.make_mesh("branch=4,tensor=2")
    by_expert, by_width = shardings_of(moe_config(6), mesh), shardings_of(moe_config(5, mlp_width=12), mesh)
    assert tuple(by_expert["layers.gate"].spec) == (None, "tensor", "fsdp", None)
    assert tuple(by_width["layers.gate"].spec) == (None, None, "fsdp", "tensor")
    with pytest.raises(ConfigError, match="tensor=2 does not divide the MLP width F = 31"):
        check_fits(mesh, moe_config(5).sizes)


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["data=2,branch=2,tensor=2", "fsdp=2,branch=4"])
def test_a_synthesizer_over_a_mesh(axes: str) -> None:
    shape = {"layers": 2, "heads": 4, "mlp_width": 32, "width": 24}
    mixture = {"family": "qwen3_moe", "qk_norm": True, "experts": 6, "experts_per_token": 2, "norm_expert_weights": True}
    model = tiny_model(**shape, **mixture)
    texts = [token_ids(i, 5 + 4 * i) for i in range(4)]
    found = []
    for mesh in (None, ps.make_mesh(axes)):
        synth = ps.ParallelSynthesis(model, adapter=random_lora(model.config, 1), mesh=mesh)
        synth.set_mapper(random_mapper(1))
        branches = synth.encode(texts)
        answer = synth.synthesize(token_ids(9, 7), branches, max_new_tokens=5)
        found.append((synth.score(token_ids(9, 7), token_ids(8, 6), branches), answer.token_ids))
    np.testing.assert_allclose(found[1][0], found[0][0], atol=2e-5)
    assert found[1][1] == found[0][1]


def test_no_lora_on_experts() -> None:
    config = moe_config(5)
    assert targets_of(config) == ("q", "k", "v", "o")
    dense = random_lora(tiny_config(), 1, targets=("down",))
    assert "down of 'down' has shape [3, 31, 4], there is no such target" in dense.misfits(config)


def test_counts_only_the_chosen() -> None:
    config = moe_config(6, 2)
    dense = tiny_config(qk_norm=True, family="qwen3")
    mlp = 3 * config.layers * config.width * config.mlp_width
    assert numbers_per_token(config) == numbers_per_token(dense) + mlp + config.layers * config.width * 6


@pytest.mark.parametrize("changed", [{"experts": 0}, {"experts_per_token": 0}, {"experts": 3, "experts_per_token": 4}])
def test_what_cannot_be_chosen(changed: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="experts cannot be chosen"):
        DecoderConfig.parse({**moe_config().model_dump(), **changed})
