"""Averages of adapters: of what they add, and of their factors as the published system does it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.convert.merging import merge_adapters
from psynth_jax.errors import AdapterError, InputError
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import FACTOR_LETTERS, Lora, delta_of_weight
from tests.tiny import random_lora, random_mapper, tiny_config

CONFIG = tiny_config()


def adapter(seed: int, rank: int = 4, scale: float = 2.0, targets: str | None = None) -> Adapter:
    lora = random_lora(CONFIG, seed, rank, targets)
    return Adapter(Lora(lora.down, lora.up, jnp.float32(scale)), Mapper.from_arrays(random_mapper(seed)))


def deltas(lora: Lora | None) -> dict[tuple[str, int], np.ndarray]:
    assert lora is not None
    return {(t, layer): delta_of_weight(lora, t, layer) for t in lora.down for layer in range(CONFIG.layers)}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_average_of_the_deltas_at_the_sum_of_the_ranks(weight: float) -> None:
    first, second = adapter(1, rank=3), adapter(2, rank=4, scale=0.7)
    merged = merge_adapters(first, second, weight, rank=7)
    assert merged.adapter.lora is not None and merged.adapter.lora.rank == 7 and merged.error < 1e-6
    one, other = deltas(first.lora), deltas(second.lora)
    for key, found in deltas(merged.adapter.lora).items():
        np.testing.assert_allclose(found, weight * one[key] + (1 - weight) * other[key], atol=1e-5)


def test_a_cut_to_the_rank_is_the_nearest_and_tells_its_error() -> None:
    first, second = adapter(1), adapter(2)
    merged = merge_adapters(first, second)
    assert merged.adapter.lora is not None and merged.adapter.lora.rank == 4
    one, other = deltas(first.lora), deltas(second.lora)
    lost = total = 0.0
    for key, found in deltas(merged.adapter.lora).items():
        mean = (0.5 * one[key] + 0.5 * other[key]).astype(np.float64)
        flat = mean.reshape(mean.shape[0] if key[0] != "o" else -1, CONFIG.width if key[0] == "o" else mean[0].size)
        values = np.linalg.svd(flat, compute_uv=False)
        assert np.linalg.norm(found - mean) == pytest.approx(np.linalg.norm(values[4:]), rel=1e-4)
        lost, total = lost + (values[4:] ** 2).sum(), total + (values**2).sum()
    assert 0.1 < merged.error < 0.9
    assert merged.error == pytest.approx((lost / total) ** 0.5, rel=1e-4)


def test_a_rank_larger_than_both_together() -> None:
    merged = merge_adapters(adapter(1), adapter(2), rank=11)
    assert merged.adapter.lora is not None and merged.adapter.lora.rank == 11 and merged.error < 1e-6
    assert merged.adapter.lora.misfits(CONFIG) == []


def test_of_factors_is_what_the_published_system_does() -> None:
    first, second = adapter(1), adapter(2)
    merged = merge_adapters(first, second, 0.25, how="factors").adapter.lora
    assert merged is not None and first.lora is not None and second.lora is not None
    for half in ("down", "up"):
        for target in FACTOR_LETTERS:
            x, y = (np.asarray(getattr(lora, half)[target]) for lora in (first.lora, second.lora))
            np.testing.assert_allclose(getattr(merged, half)[target], 0.25 * x + 0.75 * y, rtol=1e-5, atol=1e-6)


def test_mappers() -> None:
    first, second = adapter(1), adapter(2)
    assert first.mapper is not None and second.mapper is not None
    assert merge_adapters(first, second, mapper="first").adapter.mapper is first.mapper
    assert merge_adapters(first, second, mapper="second").adapter.mapper is second.mapper
    mean = merge_adapters(first, second, 0.25).adapter.mapper
    assert mean is not None
    expected = 0.25 * np.asarray(first.mapper.out_kernel) + 0.75 * np.asarray(second.mapper.out_kernel)
    np.testing.assert_allclose(mean.out_kernel, expected, rtol=1e-5, atol=1e-7)
    nothing = Adapter(None, None)
    assert merge_adapters(nothing, nothing).adapter == nothing


@pytest.mark.parametrize(
    ("second", "settings", "match"),
    [
        (adapter(2), {"weight": 1.5}, "weight is 1.5; it must be from 0 to 1"),
        (adapter(2), {"how": "svd"}, "how is 'svd'; it must be one of deltas, factors"),
        (adapter(2), {"mapper": "third"}, "mapper is 'third'"),
        (adapter(2), {"rank": 0}, "rank must be at least 1"),
        (adapter(2), {"rank": 4, "how": "factors"}, "is for averages of deltas"),
        (adapter(2, rank=5), {"how": "factors"}, "the same rank and scale: 4 and 5"),
        (adapter(2, scale=1.0), {"how": "factors"}, "the same rank and scale.* 2.0 and 1.0"),
        (adapter(2, targets="qv"), {}, r"change \['down', 'gate', .*\] and \['q', 'v'\]"),
        (Adapter(None, adapter(2).mapper), {}, "only one of the adapters has a LoRA"),
        (Adapter(adapter(2).lora, None), {}, "only one of the adapters has a mapper"),
        (Adapter(adapter(2).lora, None, 50), {}, "choose from None and 50 tokens"),
    ],
)
def test_what_has_no_average(second: Adapter, settings: Any, match: str) -> None:
    with pytest.raises((InputError, AdapterError), match=match):
        merge_adapters(adapter(1), second, **settings)


def test_saved_and_used(tmp_path: Path) -> None:
    model = ps.load_model("tiny-random")
    lora = random_lora(model.config, 1)
    merged = merge_adapters(Adapter(lora, None), Adapter(lora, None), mapper="first").adapter
    ps.save_adapter(tmp_path / "merged", merged, model)
    found = ps.ParallelSynthesis(model, adapter=tmp_path / "merged").score([1, 2], [3, 4])
    np.testing.assert_allclose(found, ps.ParallelSynthesis(model, adapter=lora).score([1, 2], [3, 4]), atol=1e-4)


def test_adapters_after_different_sinks_have_no_average() -> None:
    first, second = (dataclasses.replace(adapter(seed), sink=(1, 2)) for seed in (1, 2))
    assert merge_adapters(first, second).adapter.sink == (1, 2)
    with pytest.raises(AdapterError, match="different sinks"):
        merge_adapters(first, dataclasses.replace(second, sink=()))


class TestNumbersThatAreNotFinite:
    @pytest.mark.parametrize("how", ["deltas", "factors"])
    @pytest.mark.parametrize("number", [np.nan, np.inf])
    @pytest.mark.parametrize("which", ["first", "second"])
    def test_are_named(self, how: Any, number: float, which: str) -> None:
        adapters = {"first": adapter(1), "second": adapter(2)}
        spoiled = adapters[which].lora
        assert spoiled is not None
        spoiled.up["v"] = spoiled.up["v"].at[2, 1, 0, 3].set(number)
        with pytest.raises(AdapterError, match=rf"the {which} adapter: \S*up\S*v\S* is damaged: 1 .* at \[2, 1, 0, 3\]"):
            merge_adapters(adapters["first"], adapters["second"], how=how)

    def test_of_a_mapper(self) -> None:
        second = adapter(2)
        assert second.mapper is not None
        spoiled = dataclasses.replace(second.mapper, out_bias=second.mapper.out_bias.at[1].set(np.nan))
        with pytest.raises(AdapterError, match=r"the second adapter: .*out_bias"):
            merge_adapters(adapter(1), dataclasses.replace(second, mapper=spoiled))

    def test_a_sum_that_overflows(self) -> None:
        first, second = adapter(1), adapter(2)
        for one in (first, second):
            assert one.lora is not None
            one.lora.down["q"] = jnp.full_like(one.lora.down["q"], 3e38)
            one.lora.up["q"] = jnp.full_like(one.lora.up["q"], 3e38)
        with pytest.raises(AdapterError, match=r"the average of the adapters: (down|up) of q has"):
            merge_adapters(first, second)

    def test_singular_values_that_are_not_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: Any) -> Any:
            raise np.linalg.LinAlgError("SVD did not converge")

        monkeypatch.setattr(np.linalg, "svd", fails)
        with pytest.raises(AdapterError, match=r"deltas of \w+ has no singular values: SVD did not converge"):
            merge_adapters(adapter(1), adapter(2))


@pytest.mark.parametrize("narrow", ["first", "second"])
def test_the_average_of_factors_has_the_wider_dtype(narrow: str) -> None:
    """It took the dtype of the first adapter."""
    first, second = adapter(1), adapter(2)
    changed = {"first": first, "second": second}[narrow].lora
    assert changed is not None and first.lora is not None and second.lora is not None
    changed.down["q"] = changed.down["q"].astype(jnp.bfloat16)
    merged = merge_adapters(first, second, weight=0.3, how="factors").adapter.lora
    assert merged is not None
    expected = 0.3 * np.asarray(first.lora.down["q"], np.float32) + 0.7 * np.asarray(second.lora.down["q"], np.float32)
    assert merged.down["q"].dtype == np.float32
    np.testing.assert_allclose(merged.down["q"], expected, atol=1e-6)


def test_adapters_of_different_template_variables_have_no_average() -> None:
    first, second = (dataclasses.replace(adapter(seed), template={"enable_thinking": False}) for seed in (1, 2))
    assert merge_adapters(first, second).adapter.template == {"enable_thinking": False}
    assert merge_adapters(adapter(1), second).adapter.template == {"enable_thinking": False}
    with pytest.raises(AdapterError, match="no template variables, and with enable_thinking=false"):
        merge_adapters(dataclasses.replace(first, template={}), second)
