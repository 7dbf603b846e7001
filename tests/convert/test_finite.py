"""A stored tensor that holds numbers that are none is named when it is read, wherever it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.convert import finite
from psynth_jax.convert.convert import convert
from psynth_jax.convert.finite import is_finite, refuse_not_finite
from psynth_jax.convert.load import load_model, open_model
from psynth_jax.errors import AdapterError, CheckpointError
from tests.convert.test_hf import LLAMA, random_tensors, write_model

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
BAD = [np.nan, np.inf, -np.inf]
TENSORS = ["model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"]


class TestCheck:
    @pytest.mark.parametrize("dtype", [*DTYPES, np.float64])
    @pytest.mark.parametrize("bad", [*BAD, -np.nan])
    def test_every_place_is_looked_at(self, dtype: Any, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(finite, "_BLOCK", 7)
        values = np.random.default_rng(0).standard_normal((5, 6)).astype(dtype)
        assert is_finite(values) and is_finite(values.T) and is_finite(values[:, ::2])
        for place in np.ndindex(values.shape):
            damaged = values.copy()
            damaged[place] = bad
            assert not is_finite(damaged) and not is_finite(damaged.T)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_largest_numbers_are_finite(self, dtype: Any) -> None:
        limits = ml_dtypes.finfo(dtype)
        assert is_finite(np.array([limits.max, limits.min, limits.tiny, 0, -0.0], dtype)) and is_finite(np.zeros(0, dtype))

    def test_what_is_said(self) -> None:
        values = np.ones((3, 4), np.float32)
        values[1, 2], values[2, 0] = np.nan, np.inf
        with pytest.raises(AdapterError) as caught:
            refuse_not_finite("DIR", "lora.q.down", values, AdapterError)
        assert str(caught.value) == "DIR: lora.q.down is damaged: 2 numbers are not finite, the first is nan at [1, 2]"


class TestModels:
    @pytest.fixture(params=[(name, bad) for name in TENSORS for bad in BAD], ids=str)
    def damaged(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
        name, bad = request.param
        tensors = random_tensors(LLAMA, ml_dtypes.bfloat16)
        tensors[name].reshape(-1)[-3] = bad
        (tmp_path / "source").mkdir()
        return write_model(tmp_path / "source", LLAMA, tensors, shards=2), name

    def test_loading_and_converting_name_the_tensor(self, damaged: tuple[Path, str], tmp_path: Path) -> None:
        directory, name = damaged
        for dtype in ("float32", "bfloat16", "float16"):
            with pytest.raises(CheckpointError, match=rf"{directory}: {name} is damaged: 1 number is not finite"):
                load_model(directory, dtype)
        for to in ("hf", "psynth"):
            with pytest.raises(CheckpointError, match=f"{name} is damaged"):
                convert(directory, tmp_path / "out", to)  # type: ignore[arg-type]
            assert not (tmp_path / "out").exists()

    def test_on_a_mesh(self, tmp_path: Path) -> None:
        raw = {**LLAMA, "hidden_size": 24, "intermediate_size": 16, "num_attention_heads": 8}
        tensors = random_tensors(raw)
        tensors["model.layers.2.mlp.up_proj.weight"][15, 23] = np.nan
        write_model(tmp_path, raw, tensors)
        with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight is damaged"):
            load_model(tmp_path, mesh=ps.make_mesh("fsdp=2,tensor=2,branch=2"))

    def test_a_sample_that_is_looked_up(self, tmp_path: Path) -> None:
        tensors = random_tensors(LLAMA)
        tensors["model.norm.weight"][0] = np.inf
        stream = open_model(write_model(tmp_path, LLAMA, tensors))
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight is damaged"):
            _ = stream.fingerprint

    @pytest.mark.parametrize(
        ("stored", "value", "dtype", "advice"),
        [
            (np.float32, 1e5, "float16", "bfloat16 or float32"),
            (np.float32, -7e4, "float16", "bfloat16 or float32"),
            (ml_dtypes.bfloat16, 1e30, "float16", "bfloat16 or float32"),
            (np.float32, 3.4e38, "bfloat16", "float32"),
        ],
    )
    @pytest.mark.parametrize("name", TENSORS)
    def test_overflow(self, stored: Any, value: float, dtype: str, advice: str, name: str, tmp_path: Path) -> None:
        tensors = random_tensors(LLAMA, stored)
        tensors[name].reshape(-1)[5] = value
        write_model(tmp_path, LLAMA, tensors)
        load_model(tmp_path, "float32")
        with pytest.raises(CheckpointError, match=f"{name} holds values that {dtype} cannot represent; load as {advice}$"):
            load_model(tmp_path, dtype)
        if dtype == "float16":
            load_model(tmp_path, "bfloat16")
