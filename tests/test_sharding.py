"""Meshes, specs from letters, and parameters that go straight into their pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from psynth_jax import load_model
from psynth_jax.convert.hf import SafetensorsDirectory, config_from_hf
from psynth_jax.convert.rules import axis_sizes, hf_rules
from psynth_jax.errors import ConfigError, UserError
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder, layer_shardings, parameter_letters, shardings_of
from psynth_jax.nn.layer_forms import Layers, SeparateLayers
from psynth_jax.sharding import check_fits, kv_copies, make_mesh, parameter_spec, pick, put
from tests.convert.test_hf import LLAMA, random_tensors, write_model
from tests.tiny import tiny_config

RAW = {**LLAMA, "num_attention_heads": 4, "intermediate_size": 16, "hidden_size": 24}


class TestMakeMesh:
    def test_all_four_axes_of_auto_type(self) -> None:
        mesh = make_mesh("branch=4, tensor=2")
        assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "branch": 4, "tensor": 2}
        assert set(mesh.axis_types) == {AxisType.Auto}
        assert mesh == make_mesh({"tensor": 2, "branch": 4})

    def test_some_devices_when_they_are_named(self) -> None:
        chosen = jax.devices()[2:4]
        assert set(make_mesh("branch=2", chosen).devices.flat) == set(chosen)

    @pytest.mark.parametrize(
        ("axes", "named"),
        [
            ("branch=2,heads=4", "no axis 'heads': choose from data, fsdp, branch, tensor"),
            ("branch=2,branch=4", "branch is given twice"),
            ("branch=2,tensor=2", "branch=2,tensor=2 has 4 devices, but there are 8"),
            ("branch=16", "has 16 devices, but there are 8"),
            ("branch=0", "branch is 0"),
            ("branch=-1", "'branch=-1' is no axis"),
            ("branch", "'branch' is no axis"),
            ("", "written like branch=2,tensor=2"),
            ({"branch": 2.0}, "branch is 2.0"),
        ],
    )
    def test_what_is_no_mesh(self, axes: Any, named: str) -> None:
        with pytest.raises(ConfigError, match=named) as caught:
            make_mesh(axes)
        assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


class TestSpecs:
    def test_of_every_parameter(self) -> None:
        config = tiny_config(heads=8, kv_heads=2, mlp_width=32, width=24, vocab_size=96, qkv_bias=True, qk_norm=True)
        mesh = make_mesh("fsdp=2,tensor=4")
        specs = {name: parameter_spec(letters, config.sizes, mesh) for name, letters in parameter_letters(config).items()}
        assert specs["embedding"] == specs["head"] == P("tensor", "fsdp")
        assert specs["layers.q"] == P(None, "fsdp", "tensor", None)
        assert specs["layers.k"] == specs["layers.v"] == P(None, "fsdp", None, None)  # 4 does not divide 2
        assert specs["layers.o"] == P(None, "tensor", None, "fsdp")
        assert specs["layers.gate"] == P(None, "fsdp", "tensor")
        assert specs["layers.down"] == P(None, "tensor", "fsdp")
        assert specs["layers.q_bias"] == P(None, "tensor", None)
        assert specs["layers.q_norm"] == P(None, None)
        assert specs["final_norm"] == P("fsdp")

    def test_a_vocabulary_that_does_not_divide_is_replicated(self) -> None:
        assert parameter_spec("V D", {"V": 97, "D": 22}, make_mesh("fsdp=2,tensor=4")) == P(None, "fsdp")

    @pytest.mark.parametrize(
        ("axes", "named"),
        [
            ("tensor=8", ["tensor=8 does not divide the heads N = 6", "MLP width F = 31"]),
            ("fsdp=4,branch=2", ["fsdp=4 does not divide the model width D = 22"]),
        ],
    )
    def test_what_does_not_divide_is_named(self, axes: str, named: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            check_fits(make_mesh(axes), tiny_config().sizes)
        assert all(name in str(caught.value) for name in named)

    @pytest.mark.parametrize(("kv_heads", "copies"), [(1, 4), (2, 2), (4, 1), (8, 1), (6, 2)])
    def test_copies_of_kv_heads(self, kv_heads: int, copies: int) -> None:
        assert kv_copies(kv_heads, make_mesh("branch=2,tensor=4")) == copies


def _pieces(model: Model, mesh: Mesh) -> Iterator[tuple[jax.Array, NamedSharding]]:
    """Yield every array of a model, and how it is to be cut."""
    decoder, shardings = model.decoder, shardings_of(model.config, mesh)
    if isinstance(decoder.layers, SeparateLayers):
        of_layer = layer_shardings(model.config, mesh)
        for layer in decoder.layers.layers:
            yield from ((value, of_layer[name]) for name, value in layer.items())
        yield from ((value, shardings[name]) for name, value in decoder.tables().items())
    else:
        yield from ((value, shardings[name]) for name, value in decoder.parameters().items())


class TestParameters:
    @pytest.mark.slow
    @pytest.mark.parametrize("axes", ["fsdp=2,tensor=4", "branch=8"])
    def test_random_is_what_one_device_draws(self, axes: str) -> None:
        config = tiny_config(heads=8, mlp_width=32)
        mesh = make_mesh(axes)
        placed = Decoder.random(config, 3, mesh=mesh).parameters()
        for name, value in Decoder.random(config, 3).parameters().items():
            assert placed[name].sharding.is_equivalent_to(shardings_of(config, mesh)[name], value.ndim), name
            np.testing.assert_allclose(placed[name], value, atol=1e-6)

    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("layers", ["stacked", "separate"])
    def test_loaded_piece_by_piece(
        self, tmp_path: Path, shards: int, layers: Layers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = write_model(tmp_path, RAW, random_tensors(RAW), shards)
        whole = load_model(directory)
        mesh = make_mesh("data=2,fsdp=2,tensor=2")
        sizes: list[int] = []
        read = SafetensorsDirectory.read

        def counted(self: SafetensorsDirectory, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
            piece = read(self, name, index)
            sizes.append(piece.size)
            return piece

        monkeypatch.setattr(SafetensorsDirectory, "read", counted)
        placed = load_model(directory, mesh=mesh, layers=layers)
        expected, found = whole.decoder.parameters(), placed.decoder.parameters()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
        for value, sharding in _pieces(placed, mesh):
            assert value.sharding.is_equivalent_to(sharding, value.ndim)
        assert sum(sizes) == sum(value.size for value in expected.values())  # nothing twice
        assert max(sizes) < RAW["vocab_size"] * RAW["hidden_size"]  # the embedding is cut over fsdp
        assert placed.fingerprint == whole.fingerprint

    def test_a_mesh_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        directory = write_model(tmp_path, RAW, random_tensors(RAW))
        with pytest.raises(ConfigError, match="tensor=8 does not divide the heads N = 4"):
            load_model(directory, mesh=make_mesh("tensor=8"))

    def test_pieces_of_every_rule(self) -> None:
        sizes = axis_sizes(config_from_hf(RAW))
        for rule in hf_rules(config_from_hf(RAW)):
            tensor = np.random.default_rng(0).standard_normal(rule.form.their_shape(sizes))
            shape = rule.form.our_shape(sizes)
            cuttable = [letter in "NKFDV" for letter in rule.form.ours.split()]
            index = tuple(
                slice(size // 2, size) if cut else slice(0, size) for size, cut in zip(shape, cuttable, strict=True)
            )
            piece = rule.form.to_ours(tensor[rule.form.their_index(index, sizes)], rule.form.piece_sizes(index, sizes))
            np.testing.assert_array_equal(piece, rule.form.to_ours(tensor, sizes)[index])


@pytest.mark.parametrize("spec", [P("tensor", "fsdp"), P(None, ("data", "tensor")), P()])
def test_picked_elements(spec: P) -> None:
    values = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)
    placed = put(values, NamedSharding(make_mesh("data=2,fsdp=2,tensor=2"), spec))
    places = (np.array([0, 7, 3, 3]), np.array([11, 0, 5, 6]))
    np.testing.assert_array_equal(pick(placed, places), values[places])
