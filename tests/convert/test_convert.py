"""Models from one format into another and back: bit for bit, whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import psynth_jax as ps
from psynth_jax.config import Llama3Rope, YarnRope
from psynth_jax.convert import stream, write_hf
from psynth_jax.convert.convert import convert
from psynth_jax.convert.hf import config_from_hf
from psynth_jax.convert.load import open_model
from psynth_jax.convert.stored import StoredParameter
from psynth_jax.errors import CheckpointError, DataError, InputError, UserError
from psynth_jax.presets import preset
from tests.convert.test_hf import GEMMA3, LLAMA, QWEN2, QWEN3, QWEN3_MOE, random_tensors, shapes_of, write_model
from tests.slow import exhaustive_but
from tests.tiny import random_lora, tiny_config
from tests.trees import tree_differences

FAMILIES = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "tied": {**QWEN3, "tie_word_embeddings": True}}
FAMILIES |= {"qwen3_moe": QWEN3_MOE, "gemma3": GEMMA3}
GENERATION = '{\n  "eos_token_id": [3, 5],\n  "temperature": 0.6\n}\n'


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    return {name: array for file in sorted(directory.glob("*.safetensors")) for name, array in load(file).items()}


def load(file: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(file)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether all tensors agree in name, dtype and every bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


@pytest.fixture(params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")], ids="-".join)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    family, dtype = request.param
    numbers = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    raw = {**FAMILIES[family], "torch_dtype": dtype, "unknown_to_us": [1, None]}
    (tmp_path / "source").mkdir()
    directory = write_model(tmp_path / "source", raw, random_tensors(FAMILIES[family], numbers), shards=3)
    (directory / "generation_config.json").write_text(GENERATION)
    (directory / "tokenizer_config.json.txt").write_text("kept as it is")
    return directory


def test_there_and_back_is_the_same_bit_for_bit(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "GROUP_BYTES", 6000)
    convert(source, tmp_path / "ours", "psynth")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert same(tensors_of(tmp_path / "back"), tensors_of(source))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json.txt"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_all_three_are_the_same_model(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "ours", "psynth")
    convert(source, tmp_path / "theirs", "hf")
    models = [ps.load_model(place) for place in (source, tmp_path / "ours", tmp_path / "theirs")]
    for model in models[1:]:
        assert model.config == models[0].config and model.stop_ids == {3, 5}
        assert tree_differences(models[0].decoder.parameters(), model.decoder.parameters()) == []
        assert model.fingerprint == models[0].fingerprint
    assert open_model(source).fingerprint == models[0].fingerprint
    noted = json.loads((tmp_path / "ours" / "psynth_model.json").read_text())
    assert noted["fingerprint"] == models[0].fingerprint


def test_ours_is_an_orbax_checkpoint(source: Path, tmp_path: Path) -> None:
    from orbax.checkpoint.experimental import v1 as ocp

    convert(source, tmp_path / "ours", "psynth")
    held = ocp.load(tmp_path / "ours" / "parameters")
    expected = ps.load_model(source).decoder.parameters()
    assert np.array_equal(held["embedding"], expected["embedding"])
    assert np.array_equal(held["layers.2.q"], expected["layers.q"][2])


def test_ours_loads_into_shards(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "ours", "psynth")
    mesh = ps.make_mesh("fsdp=2,branch=4")
    sharded, whole = ps.load_model(tmp_path / "ours", mesh=mesh), ps.load_model(source)
    assert sharded.fingerprint == whole.fingerprint
    held = {name: np.asarray(value) for name, value in sharded.decoder.parameters().items()}
    assert tree_differences(held, dict(whole.decoder.parameters())) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("to", ["hf", "psynth"])
def test_dtype(to: Any, dtype: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source", {**LLAMA, "torch_dtype": "float32"}, random_tensors(LLAMA))
    convert(tmp_path / "source", tmp_path / "out", to, dtype=dtype)
    found, expected = open_model(tmp_path / "out", None), open_model(tmp_path / "source", dtype)
    for one, other in zip(found.parameters, expected.parameters, strict=True):
        assert one.read().dtype == dtype and one.read().tobytes() == other.read().tobytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_a_model_of_two_dtypes_keeps_both(tmp_path: Path) -> None:
    tensors = {n: x if "norm" in n else x.astype(ml_dtypes.bfloat16) for n, x in random_tensors(LLAMA).items()}
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source", {**LLAMA, "torch_dtype": "bfloat16"}, tensors)
    convert(tmp_path / "source", tmp_path / "ours", "psynth")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert same(tensors_of(tmp_path / "back"), tensors)
    assert (tmp_path / "back" / "config.json").read_bytes() == (tmp_path / "source" / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["plain", "with # and ? and %20"])
def test_a_target_in_the_working_directory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert("tiny-random", name, "psynth")
    assert ps.load_model(tmp_path / name).fingerprint == ps.load_model("tiny-random").fingerprint
    assert [path.name for path in tmp_path.iterdir()] == [name]


ROPES = {
    "llama3": Llama3Rope(theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=64),
    "yarn": YarnRope(theta=1e6, factor=4.0, original_positions=128, attention_factor=1.25, truncate=False),
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"family": "qwen2", "qkv_bias": True},
        {"family": "qwen3", "qk_norm": True, "tied_head": True},
        {"qkv_bias": True, "o_bias": True},
        {"rope": ROPES["llama3"]},
        {"family": "qwen3", "qk_norm": True, "rope": ROPES["yarn"]},
    ],
)
def test_a_config_that_is_spelled_is_read_as_it_was(changed: dict[str, Any]) -> None:
    config = tiny_config(**changed)
    assert config_from_hf(write_hf.config_to_hf(config)) == config


def test_without_a_hugging_face_directory(tmp_path: Path) -> None:
    convert("tiny-random", tmp_path / "hf", "hf")
    convert("tiny-random", tmp_path / "ours", "psynth", dtype="bfloat16")
    drawn = ps.load_model("tiny-random")
    for place, dtype in (("hf", "float32"), ("ours", "bfloat16")):
        model = ps.load_model(tmp_path / place, dtype)
        assert (model.config, model.stop_ids, model.fingerprint) == (drawn.config, drawn.stop_ids, drawn.fingerprint)
        assert model.tokenizer is not None and drawn.tokenizer is not None
        messages = [{"role": "user", "content": "Grüße"}]
        assert model.tokenizer.chat(messages) == drawn.tokenizer.chat(messages)


class TestMerging:
    def test_the_lora_moves_into_the_weights(self, tmp_path: Path) -> None:
        model = ps.load_model("tiny-random")
        lora = random_lora(model.config, 5)
        ps.save_adapter(tmp_path / "adapter", ps.Adapter(lora, None), model)
        made = convert(tmp_path / "adapter", tmp_path / "merged", "hf", merge=True)
        assert (made.kind, made.base, made.dropped) == ("model", "tiny-random", ())
        merged = ps.ParallelSynthesis(ps.load_model(tmp_path / "merged"))
        adapted = ps.ParallelSynthesis(model, adapter=lora)
        prompt, target = [1, 2, 3], [7, 250, 31, 9]
        np.testing.assert_allclose(merged.score(prompt, target), adapted.score(prompt, target), atol=1e-4)
        assert np.abs(merged.score(prompt, target) - ps.ParallelSynthesis(model).score(prompt, target)).max() > 0.1

    def test_a_cut_vocabulary_is_cut_off(self, tmp_path: Path) -> None:
        model = ps.load_model("tiny-random")
        convert(model.name, tmp_path / "base", "hf")
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "base" / name).unlink()
        raw = json.loads((tmp_path / "base" / "config.json").read_text())
        (tmp_path / "base" / "config.json").write_text(
            json.dumps({key: x for key, x in raw.items() if key != "eos_token_id"})
        )
        ps.save_adapter(tmp_path / "adapter", ps.Adapter(random_lora(model.config, 5), None, vocabulary=200), model)
        convert(tmp_path / "adapter", tmp_path / "merged", "hf", merge=True, base=tmp_path / "base")
        merged = ps.load_model(tmp_path / "merged")
        assert merged.config == model.config.model_copy(update={"vocab_size": 200})
        found = ps.ParallelSynthesis(merged).score([1, 2, 3], [7, 150, 31, 9])
        expected = ps.ParallelSynthesis(model, adapter=tmp_path / "adapter").score([1, 2, 3], [7, 150, 31, 9])
        np.testing.assert_allclose(found, expected, atol=1e-4)


class TestCutVocabularies:
    def test_not_below_the_end_of_a_text(self, tmp_path: Path) -> None:
        model = ps.load_model("tiny-random")
        ps.save_adapter(tmp_path / "adapter", ps.Adapter(random_lora(model.config, 5), None, vocabulary=200), model)
        with pytest.raises(InputError, match=r"writes only 200 tokens, the model ends with \[257\]"):
            convert(tmp_path / "adapter", tmp_path / "merged", "hf", merge=True)

    def test_a_model_is_whole_again_without_the_adapter(self) -> None:
        model = ps.load_model("tiny-random")
        cut = ps.ParallelSynthesis(model, adapter=ps.Adapter(None, None, vocabulary=200))
        assert cut.runner.vocabulary == 200 and cut.adapter.vocabulary == 200
        assert ps.ParallelSynthesis(cut.model).runner.vocabulary == 258


class TestRefused:
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> Path:
        model = ps.load_model("tiny-random")
        ps.save_adapter(tmp_path / "adapter", ps.Adapter(random_lora(model.config, 5), None), model)
        return tmp_path / "adapter"

    @pytest.mark.parametrize(
        ("given", "settings", "match"),
        [
            ("adapter", {"to": "hf"}, "is an adapter.*merge them, or convert to peft"),
            ("tiny-random", {"to": "peft"}, "is a model, and PEFT has adapters"),
            ("tiny-random", {"to": "gguf"}, "to must be one of psynth, hf, peft"),
            ("tiny-random", {"to": "hf", "merge": True}, "so it must be an adapter"),
            ("adapter", {"to": "psynth", "merge": True}, "to must be hf"),
            ("adapter", {"to": "peft", "dtype": "bfloat16"}, "dtype is for models"),
            ("tiny-random", {"to": "hf", "base": "x"}, "base is for adapters"),
            ("tiny-random", {"to": "hf", "dtype": "int8"}, "dtype 'int8' is not supported"),
            ("nowhere", {"to": "hf"}, "there is no model 'nowhere'"),
        ],
    )
    def test_what_makes_no_sense(self, adapter: Path, given: str, settings: Any, match: str, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=match):
            convert(adapter if given == "adapter" else given, tmp_path / "out", **settings)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_target_that_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match=r"is not an empty directory: it has thesis\.txt"):
            convert("tiny-random", tmp_path, "hf")

    @pytest.mark.parametrize("to", ["hf", "psynth"])
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
    def test_one_that_breaks_off_leaves_nothing(
        self, to: Any, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "source").mkdir()
        write_model(tmp_path / "source", LLAMA, random_tensors(LLAMA), shards=3)
        read, calls = StoredParameter.read, []

        def breaks(self: Any, index: Any = None) -> np.ndarray:
            calls.append(index)
            if len(calls) > 20:
                raise error
            return read(self, index)

        monkeypatch.setattr(StoredParameter, "read", breaks)
        monkeypatch.setattr(stream, "GROUP_BYTES", 6000)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((DataError, KeyboardInterrupt), match=r"disk is full|^$"):
            convert(tmp_path / "source", tmp_path / "out", to)
        assert sorted(tmp_path.rglob("*")) == before


def damage_header(directory: Path) -> None:
    """Let a header claim more bytes than the file has."""
    file = sorted(directory.glob("*.safetensors"))[0]
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"][0] *= 2
    spelled = json.dumps(header).encode().ljust(length)
    file.write_bytes(len(spelled).to_bytes(8, "little") + spelled + raw[8 + length :])


def cut_shard(directory: Path) -> None:
    file = sorted(directory.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-50])


def forget_entry(directory: Path) -> None:
    """Take the tensors of a file out of the index: it is not looked into, then."""
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    last = max(index["weight_map"].values())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != last}
    path.write_text(json.dumps(index))


def store_twice(directory: Path) -> None:
    first, second, *_ = sorted(directory.glob("*.safetensors"))
    tensors = load(second)
    safetensors.numpy.save_file(tensors | dict([next(iter(load(first).items()))]), second)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (damage_header, "model-00001-of-00003.safetensors is not a complete safetensors file"),
        (cut_shard, "model-00002-of-00003.safetensors is not a complete safetensors file"),
        (forget_entry, "does not fit its config.*missing model"),
        (store_twice, "is in model-00001-of-00003.safetensors and in model-00002-of-00003.safetensors"),
    ],
)
@pytest.mark.parametrize("to", ["hf", "psynth"])
def test_a_damaged_source_is_refused(to: Any, damage: Any, match: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    damage(write_model(tmp_path / "source", LLAMA, random_tensors(LLAMA), shards=3))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=match) as caught:
        convert(tmp_path / "source", tmp_path / "out", to)
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


MEASURE = """
import resource, sys
from psynth_jax.convert import stream
from psynth_jax.convert.convert import convert
stream.GROUP_BYTES = 64 << 20
convert("tiny-random", sys.argv[2] + "-first", sys.argv[3])  # everything that is ever imported
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def four_layers_of_14b(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Qwen3-14B with fewer layers and tokens, bfloat16, and its bytes: every tensor of a layer is as large as there."""
    config = preset("qwen3-14b").config.model_copy(update={"layers": 4, "vocab_size": 2048})
    raw = write_hf.config_to_hf(config) | {"torch_dtype": "bfloat16"}
    shapes = shapes_of(raw)
    some = np.random.default_rng(2).standard_normal(1 << 20).astype(ml_dtypes.bfloat16)
    directory = tmp_path_factory.mktemp("source")
    write_model(directory, raw, {name: np.resize(some, shape) for name, shape in shapes.items()}, shards=8)
    return directory, 2 * sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_layers_of_14b_there_and_back(four_layers_of_14b: tuple[Path, int], tmp_path: Path) -> None:
    """Bit for bit, in a fraction of the memory that the model takes."""
    source, size = four_layers_of_14b
    assert size > 2.6e9
    for begin, target, to in ((source, tmp_path / "ours", "psynth"), (tmp_path / "ours", tmp_path / "back", "hf")):
        command = [sys.executable, "-c", MEASURE, str(begin), str(target), to]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) * 1024 < size / 2
    assert same(tensors_of(tmp_path / "back"), tensors_of(source))


@pytest.mark.parametrize("to", exhaustive_but(["hf", "psynth"], full=["hf"]))
def test_memory_does_not_grow_with_the_model(to: str, tmp_path: Path) -> None:
    raw = {**LLAMA, "num_hidden_layers": 60, "hidden_size": 1024, "intermediate_size": 2048}
    (tmp_path / "source").mkdir()
    tensors = {name: np.broadcast_to(np.float32(1), x.shape) for name, x in random_tensors(raw).items()}
    size = sum(array.nbytes for array in tensors.values())
    assert size > 1.5e9
    write_model(tmp_path / "source", raw, {name: np.ascontiguousarray(x) for name, x in tensors.items()}, shards=30)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "source"), str(tmp_path / "out"), to]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < size / 4
