"""A model is known by its stored weights: whatever they are read as, wherever they lie, and in files of earlier versions."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.config import DecoderConfig, LinearRope, PlainRope
from psynth_jax.convert.adapter_directory import Adapter, save_adapter
from psynth_jax.convert.adapters import no_shipped_adapter, shipped_adapter
from psynth_jax.convert.convert import convert
from psynth_jax.convert.load import open_model
from psynth_jax.convert.release import write_release
from psynth_jax.errors import ModelMismatchError
from psynth_jax.identity import Samples, identify, joined
from psynth_jax.mapper import Mapper
from psynth_jax.nn.decoder import Decoder
from tests.convert.test_hf import GEMMA3, LLAMA, QWEN2, QWEN3, QWEN3_MOE, random_tensors, write_model
from tests.processes import run_two
from tests.tiny import random_lora, random_mapper, tiny_config, tiny_decoder, tiny_model, token_ids

DTYPES = ("float32", "bfloat16", "float16")
TIED = {**QWEN3, "tie_word_embeddings": True}
FAMILIES = {"llama": LLAMA, "qwen2": QWEN2, "tied": TIED, "qwen3_moe": QWEN3_MOE, "gemma3": GEMMA3}


def fingerprint_of_0_1_0(config: DecoderConfig, parameters: dict[str, Any]) -> str:
    """What version 0.1.0 called a model, from the numbers that it had loaded."""
    summed = hashlib.sha256(config.spelled.encode())
    for name, value in sorted(parameters.items()):
        size = np.size(value)
        places = np.linspace(0, size - 1, min(2048, size)).astype(np.int64)
        sampled = np.asarray(value)[np.unravel_index(places, value.shape)]
        summed.update(name.encode())
        summed.update(sampled.astype(jnp.bfloat16).tobytes())
    return summed.hexdigest()


def save(directory: Path, raw: dict[str, Any], dtype: Any = np.float32) -> Path:
    directory.mkdir()
    return write_model(directory, raw, random_tensors(raw, dtype))


class TestOneSource:
    @pytest.mark.slow
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
    def test_is_one_model_in_every_dtype_and_format(self, family: str, stored: Any, tmp_path: Path) -> None:
        source = save(tmp_path / "source", FAMILIES[family], stored)
        convert(source, tmp_path / "ours", "psynth")
        convert(tmp_path / "ours", tmp_path / "back", "hf")
        places = (source, tmp_path / "ours", tmp_path / "back")
        loaded = {ps.load_model(place, dtype).fingerprint for place in places for dtype in DTYPES}
        streamed = {open_model(place, dtype).fingerprint for place in places for dtype in (*DTYPES, None)}
        assert len(loaded | streamed) == 1

    @pytest.mark.parametrize("to", ["hf", "psynth"])
    def test_is_the_same_on_a_mesh(self, to: Any, tmp_path: Path) -> None:
        raw = {**QWEN3, "hidden_size": 24, "intermediate_size": 16, "num_attention_heads": 8}
        convert(save(tmp_path / "source", raw), tmp_path / "model", to)
        mesh = ps.make_mesh("fsdp=2,tensor=2,branch=2")
        for dtype in DTYPES:
            model = ps.load_model(tmp_path / "model", dtype, mesh)
            assert model.fingerprint == model.on(None).fingerprint == open_model(tmp_path / "source").fingerprint

    @pytest.mark.slow
    def test_two_processes_share_what_each_has_read(self, tmp_path: Path) -> None:
        raw = {**QWEN3, "hidden_size": 24, "intermediate_size": 16, "num_attention_heads": 8}
        source = save(tmp_path / "source", raw, ml_dtypes.bfloat16)
        expected = open_model(source).fingerprint
        assert run_two("tests.convert.one_of_two_processes", str(source)) == [expected] * 2

    def test_of_a_tiny_model_too(self) -> None:
        models = [ps.load_model("tiny-random", dtype) for dtype in DTYPES]
        assert len({model.fingerprint for model in models} | {open_model("tiny-random", "float16").fingerprint}) == 1
        mesh = ps.make_mesh("data=8")
        for model in models:
            others = (model.on(mesh), model.on(mesh).on(None), dataclasses.replace(model, name="other"))
            assert {other.fingerprint for other in others} == {models[0].fingerprint}

    @pytest.mark.parametrize("read_first", [False, True])
    def test_samples_are_the_numbers_of_the_file(self, read_first: bool, tmp_path: Path) -> None:
        """Looked up one by one they are those that are noted while everything is read."""
        for family, raw in FAMILIES.items():
            stream = open_model(save(tmp_path / family, raw), "float16")
            exact = {stored.name: stored.read() for stored in open_model(tmp_path / family, "float32").parameters}
            for stored in stream.parameters:
                if read_first:
                    stored.read()
                    assert stored.samples.known.all()
                stored.complete_samples()
                np.testing.assert_array_equal(stored.samples.values, exact[stored.name][stored.samples.places()])

    def test_nothing_is_read_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = save(tmp_path / "source", LLAMA)
        stream = open_model(source, "bfloat16")
        for stored in stream.parameters:
            stored.read()
        (source / "model.safetensors").unlink()
        assert stream.fingerprint == open_model(save(tmp_path / "again", LLAMA)).fingerprint

    def test_samples_come_in_any_order(self) -> None:
        values = np.random.default_rng(0).standard_normal((5, 70, 30)).astype(np.float32)
        samples = Samples(values.shape)
        for layer in (4, 1, 0, 2, 3):
            for first in (40, 0):
                for column in (0, 17):
                    piece = values[layer : layer + 1, first : first + 40, column : column + 17]
                    samples.note((layer, first, column), piece)
        assert samples.known.all() and len(samples.values) == 2048
        np.testing.assert_array_equal(samples.values, values[samples.places()])


class TestTheConfig:
    @pytest.mark.parametrize(
        "changed",
        [
            {"max_positions": 64},
            {"family": "qwen2"},
            {"norm_expert_weights": True},
            {"query_scale": 10**-0.5},
            {"rope": LinearRope(theta=1e4, factor=1.0)},
        ],
    )
    def test_what_changes_no_number_changes_no_identity(self, changed: dict[str, Any]) -> None:
        assert tiny_model(**changed).fingerprint == tiny_model().fingerprint

    @pytest.mark.parametrize(
        "changed",
        [
            {"norm_eps": 1e-6},
            {"rope": PlainRope(theta=1e5)},
            {"rope": LinearRope(theta=1e4, factor=2.0)},
            {"query_scale": 0.5},
            {"activation": "gelu_tanh"},
            {"scaled_embedding": True},
            {"norms_from_one": True},
            {"heads": 2},
        ],
    )
    def test_what_changes_numbers_changes_it(self, changed: dict[str, Any]) -> None:
        assert tiny_model(**changed).fingerprint != tiny_model().fingerprint

    def test_positions_of_a_file(self, tmp_path: Path) -> None:
        one = save(tmp_path / "one", LLAMA)
        other = save(tmp_path / "other", {**LLAMA, "max_position_embeddings": 4096})
        assert open_model(one).fingerprint == open_model(other).fingerprint

    def test_a_copied_embedding_is_a_tied_head(self) -> None:
        tied = tiny_decoder(tiny_config(tied_head=True))
        parameters = tied.parameters()
        untied = Decoder(tiny_config(), {**parameters, "head": parameters["embedding"]})
        prints = [ps.Model(decoder, None, frozenset(), "m").fingerprint for decoder in (tied, untied)]
        assert prints[0] == prints[1] != tiny_model().fingerprint

    def test_other_numbers(self) -> None:
        assert tiny_model(seed=1).fingerprint != tiny_model().fingerprint


class TestFilesOfEarlierVersions:
    @pytest.mark.parametrize("loaded", DTYPES)
    @pytest.mark.parametrize("read", DTYPES)
    def test_an_old_digest_is_accepted(self, loaded: str, read: str, tmp_path: Path) -> None:
        source = save(tmp_path / "source", LLAMA)
        old = fingerprint_of_0_1_0(open_model(source).config, dict(ps.load_model(source, loaded).decoder.parameters()))
        identity = ps.load_model(source, read).identity
        assert identity.matches(old) and identity.matches(identity.fingerprint) and old != identity.fingerprint
        assert not identity.matches(fingerprint_of_0_1_0(tiny_config(), tiny_decoder(tiny_config()).parameters()))

    @pytest.mark.parametrize("noted", [None, "", 7, [], "+", "0" * 64])
    def test_what_is_no_digest(self, noted: Any) -> None:
        assert not tiny_model().identity.matches(noted)

    def test_old_and_new_branches_are_joined(self) -> None:
        model = tiny_model()
        synth = ps.ParallelSynthesis(model)
        new = synth.encode([token_ids(1, 5)])
        earlier = min(model.identity.earlier)
        old = ps.Branches(new.questions, earlier, batched=False)
        both = ps.Branches.join(old, new)
        prompt, target = token_ids(2, 4), token_ids(3, 3)
        assert both.fingerprint == ps.Branches.join(new, old, both).fingerprint
        np.testing.assert_allclose(
            synth.score(prompt, target, both), synth.score(prompt, target, ps.Branches.join(new, new)), atol=1e-5
        )
        for other in (tiny_model(seed=1).fingerprint, "of another old model"):
            with pytest.raises(ModelMismatchError, match=r"made by different models \(weights"):
                ps.Branches.join(both, ps.Branches(new.questions, other, batched=False))
        stranger = ps.Branches.join(ps.Branches(new.questions, "of another old model", batched=False), new)
        with pytest.raises(ModelMismatchError, match="another model than tiny"):
            synth.score(prompt, target, stranger)

    def test_joined(self) -> None:
        assert joined(["v2-a", "v2-a"]) == "v2-a" and joined(["b"]) == "b"
        assert joined(["b", "v2-a"]) == joined(["v2-a+b", "b"]) == "v2-a+b"
        assert joined(["v2-a", "v2-b"]) is joined(["v2-a+b", "c"]) is None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights so small that rounding them moves no log-probability by much."""
    raw = {**LLAMA, "vocab_size": 97}
    (directory := tmp_path_factory.mktemp("model") / "source").mkdir()
    tensors = {name: values / 5 for name, values in random_tensors(raw).items()}
    return write_model(directory, raw, tensors)


@pytest.fixture(scope="module")
def models(source: Path) -> dict[str, ps.Model]:
    return {dtype: ps.load_model(source, dtype) for dtype in DTYPES}


class TestFilesOfAnotherDtype:
    @pytest.mark.parametrize("made", DTYPES)
    @pytest.mark.parametrize("read", DTYPES)
    def test_adapters(self, made: str, read: str, models: dict[str, ps.Model], tmp_path: Path) -> None:
        adapter = Adapter(random_lora(models[made].config, 0), Mapper.from_arrays(random_mapper(0)))
        save_adapter(tmp_path / "adapter", adapter, models[made])
        (tmp_path / "release").mkdir()
        write_release(tmp_path / "release", adapter, models[made], {})
        for name in ("adapter", "release"):
            assert ps.load_adapter(tmp_path / name, models[read]).lora is not None

    @pytest.mark.slow
    @pytest.mark.parametrize("made", DTYPES)
    @pytest.mark.parametrize("read", DTYPES)
    def test_branches(self, made: str, read: str, models: dict[str, ps.Model], tmp_path: Path) -> None:
        ps.ParallelSynthesis(models[made]).encode([token_ids(1, 5)]).save(tmp_path / "branches")
        branches = ps.Branches.load(tmp_path / "branches")
        synth = ps.ParallelSynthesis(models[read])
        prompt, target = token_ids(2, 4), token_ids(3, 3)
        expected = synth.score(prompt, target, synth.encode([token_ids(1, 5)]))
        np.testing.assert_allclose(synth.score(prompt, target, branches), expected, atol=0.1)

    def test_another_model_is_told_apart_by_its_weights(self, models: dict[str, ps.Model], tmp_path: Path) -> None:
        other = dataclasses.replace(models["float32"], decoder=tiny_decoder(models["float32"].config))
        save_adapter(tmp_path / "adapter", Adapter(random_lora(other.config, 0), None), other)
        with pytest.raises(ModelMismatchError) as caught:
            ps.load_adapter(tmp_path / "adapter", models["bfloat16"])
        said = str(caught.value)
        for model in (other, models["bfloat16"]):
            assert model.fingerprint.removeprefix("v2-")[:8] in said
        assert "with other weights" in said and "stored as float32" in said and "\n" not in said


class TestShippedAdapter:
    @pytest.mark.slow
    @pytest.mark.weights
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_fits_in_every_dtype(self, dtype: str, smollm2_path: Path) -> None:
        stream = open_model(smollm2_path, dtype)
        found = shipped_adapter(stream)
        assert found is not None and found.name == "smollm2-135m"
        assert no_shipped_adapter(stream) is None

    @pytest.mark.parametrize(
        "name", ["smollm2-135m", "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2_135m.Q8_0.gguf"]
    )
    def test_is_told_not_to_fit(self, name: str) -> None:
        model = dataclasses.replace(tiny_model(), name=name)
        said = no_shipped_adapter(model)
        assert said is not None and said.startswith("no shipped adapter fits: smollm2-135m was made for smollm2-135m")
        assert "not for smollm2-135m" not in said
        assert "648e7149" in said and "stored as float32" in said and "\n" not in said

    @pytest.mark.parametrize("name", ["tiny", "Qwen/Qwen3-14B", "SmolLM2-360M"])
    def test_is_not_spoken_of(self, name: str) -> None:
        assert no_shipped_adapter(dataclasses.replace(tiny_model(), name=name)) is None


def test_identify_takes_any_float_dtype() -> None:
    config = tiny_config()
    parameters = tiny_decoder(config).parameters()
    samples = {name: np.asarray(value)[Samples(value.shape).places()] for name, value in parameters.items()}
    rounded = {name: values.astype(ml_dtypes.bfloat16) for name, values in samples.items()}
    assert identify(config, samples, "").fingerprint == identify(config, rounded, "").fingerprint
