"""GGUF files in parts, and features that show only in whether a tensor is there: never another model without a word."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from psynth_jax.config import DecoderConfig
from psynth_jax.convert.gguf import GGUFFile, list_parameters, read_config
from psynth_jax.convert.load import open_model
from psynth_jax.errors import CheckpointError
from psynth_jax.presets import preset
from tests.convert import gguf_bytes as gb
from tests.convert.gguf_bytes import I32, U16, Typed

MODELS = {
    "llama with a head": ("llama", {"head": True}),
    "llama, tied": ("llama", {}),
    "qwen3 with biases": ("qwen3", {"biases": True, "head": True}),
    "gemma3": ("gemma3", {}),
}


def parameters(path: Path) -> dict[str, np.ndarray]:
    file = GGUFFile(path)
    return {stored.name: stored.read() for stored in list_parameters(file, read_config(file), None)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_any_part_is_the_whole(model: str, count: int, tmp_path: Path) -> None:
    family, options = MODELS[model]
    metadata, tensors = gb.model_metadata(family), gb.model_tensors(family, **options)
    single = gb.write(tmp_path / "single.gguf", metadata, tensors)
    expected, config = parameters(single), read_config(GGUFFile(single))
    assert config.tied_head == ("head" not in options)
    assert config.qkv_bias == ("biases" in options)
    for part in gb.write_split(tmp_path, metadata, tensors, count):
        assert read_config(GGUFFile(part)) == config
        found = parameters(part)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_parts_that_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=9)
    for key, value in list(gb.model_metadata("llama").items())[1:]:
        add = writer.add_float32 if value.kind == gb.F32 else writer.add_uint32
        add(key, value.value)
    tensors = gb.model_tensors("llama", head=True)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.glob("*.gguf"))
    assert [path.name for path in paths] == [f"m-{i:05}-of-00004.gguf" for i in (1, 2, 3, 4)]
    for path in paths:
        np.testing.assert_array_equal(parameters(path)["head"], tensors["output.weight"])


class TestMissingParts:
    @pytest.mark.parametrize(("lost", "named"), [([1], 0), ([0], 2), ([2], 0), ([0, 1], 2)])
    def test_are_named(self, lost: list[int], named: int, tmp_path: Path) -> None:
        paths = gb.write_split(tmp_path, gb.model_metadata("llama"), gb.model_tensors("llama", head=True), 3)
        for i in lost:
            paths[i].unlink()
        with pytest.raises(CheckpointError) as caught:
            open_model(paths[named])
        assert f"part {named + 1} of 3" in str(caught.value)
        assert all(paths[i].name in str(caught.value) for i in lost)
        assert not any(paths[i].name in str(caught.value).split("lacks")[1] for i in {0, 1, 2} - set(lost))

    def test_a_long_list_is_cut(self, tmp_path: Path) -> None:
        metadata = {**gb.model_metadata("llama"), "split.no": Typed(U16, 0), "split.count": Typed(U16, 60_000)}
        path = gb.write(tmp_path / "m-00001-of-60000.gguf", metadata, gb.model_tensors("llama"))
        with pytest.raises(CheckpointError, match=r"m-00009-of-60000\.gguf, and 59991 more"):
            open_model(path)

    def test_other_names(self, tmp_path: Path) -> None:
        """Under another name there is no telling which files its neighbours are."""
        paths = gb.write_split(tmp_path, gb.model_metadata("llama"), gb.model_tensors("llama", head=True), 2)
        for name in ("model.gguf", "model-1-of-2.gguf", "model-00002-of-00002.gguf", "model-00001-of-00003.gguf"):
            shutil.copyfile(paths[0], tmp_path / name)
            with pytest.raises(CheckpointError, match=r"part 1 of 2 .* must end in -00001-of-00002\.gguf"):
                open_model(tmp_path / name)

    def test_a_name_without_the_metadata(self, tmp_path: Path) -> None:
        path = gb.write(tmp_path / "m-00001-of-00002.gguf", gb.model_metadata("llama"), gb.model_tensors("llama"))
        with pytest.raises(CheckpointError, match=r"is called part 1 of 2, but .* rename it"):
            open_model(path)
        alone = path.rename(tmp_path / "m-00001-of-00001.gguf")
        assert read_config(GGUFFile(alone)).tied_head


class TestPartsThatDoNotBelong:
    def write(self, folder: Path, family: str = "llama", count: int = 2) -> list[Path]:
        folder.mkdir()
        return gb.write_split(folder, gb.model_metadata(family), gb.model_tensors(family, head=True), count)

    def test_of_another_model(self, tmp_path: Path) -> None:
        ours, other = self.write(tmp_path / "a"), self.write(tmp_path / "b", "qwen3")
        shutil.copyfile(other[1], ours[1])
        with pytest.raises(CheckpointError, match=r"not parts of one model: split\.tensors\.count differs"):
            open_model(ours[0])

    def test_twice_the_same(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path / "a")
        shutil.copyfile(paths[0], paths[1])
        with pytest.raises(CheckpointError, match=r"is called part 2; its metadata split\.no say another"):
            open_model(paths[0])

    def test_a_tensor_twice(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path / "a")
        tensors = gb.model_tensors("llama", head=True)
        split = {
            "split.no": Typed(U16, 1),
            "split.count": Typed(U16, 2),
            "split.tensors.count": Typed(I32, len(tensors)),
        }
        gb.write(paths[1], split, tensors)
        with pytest.raises(CheckpointError, match=r"tensor token_embd\.weight is in model-00001-of-00002\.gguf too"):
            open_model(paths[0])

    def test_fewer_tensors_than_declared(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path / "a")
        tensors = gb.model_tensors("llama", head=True)
        rest = {name: tensors[name] for name in list(tensors)[len(tensors) // 2 : -1]}
        split = {
            "split.no": Typed(U16, 1),
            "split.count": Typed(U16, 2),
            "split.tensors.count": Typed(I32, len(tensors)),
        }
        gb.write(paths[1], split, rest)
        with pytest.raises(CheckpointError, match=r"29 tensors, but split\.tensors\.count says 30"):
            open_model(paths[0])

    def test_a_single_file_with_fewer_tensors_than_declared(self, tmp_path: Path) -> None:
        metadata = {**gb.model_metadata("llama"), "split.tensors.count": Typed(I32, 30)}
        with pytest.raises(CheckpointError, match=r"29 tensors, but split\.tensors\.count says 30"):
            open_model(gb.write(tmp_path / "m.gguf", metadata, gb.model_tensors("llama")))

    @pytest.mark.parametrize("damage", [{"split.no": Typed(I32, -1)}, {"split.count": gb.name("2")}])
    def test_wrong_metadata(self, damage: dict[str, Typed], tmp_path: Path) -> None:
        metadata = {**gb.model_metadata("llama"), "split.no": Typed(U16, 0), "split.count": Typed(U16, 2), **damage}
        path = gb.write(tmp_path / "m-00001-of-00002.gguf", metadata, gb.model_tensors("llama"))
        with pytest.raises(CheckpointError, match=rf"metadata {next(iter(damage))} must be"):
            open_model(path)


class TestAbsentTensors:
    """What a converter leaves out is left out of every layer; a lost one is missing."""

    @pytest.mark.parametrize("layer", [0, 1, 2])
    @pytest.mark.parametrize("name", ["attn_q.bias", "attn_k.bias", "attn_v.bias"])
    @pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
    def test_biases_of_some_layers(self, family: str, name: str, layer: int, tmp_path: Path) -> None:
        tensors = gb.model_tensors(family, biases=True)
        del tensors[f"blk.{layer}.{name}"]
        path = gb.write(tmp_path / "m.gguf", gb.model_metadata(family), tensors)
        with pytest.raises(CheckpointError, match=rf"1 problem.*missing blk\.{layer}\.{name}"):
            open_model(path)

    @pytest.mark.parametrize("layer", [0, 2])
    def test_a_bias_of_one_layer(self, layer: int, tmp_path: Path) -> None:
        tensors = gb.model_tensors("llama")
        tensors[f"blk.{layer}.attn_output.bias"] = np.zeros(gb.SIZES["D"], np.float32)
        path = gb.write(tmp_path / "m.gguf", gb.model_metadata("llama"), tensors)
        with pytest.raises(CheckpointError, match=rf"missing blk\.{2 - layer}\.attn_output\.bias"):
            open_model(path)

    def test_all_biases_of_qwen2(self, tmp_path: Path) -> None:
        tensors = {name: t for name, t in gb.model_tensors("qwen2").items() if not name.endswith("bias")}
        with pytest.raises(CheckpointError, match=r"missing blk\.0\.attn_q\.bias"):
            open_model(gb.write(tmp_path / "m.gguf", gb.model_metadata("qwen2"), tensors))

    @pytest.mark.parametrize("family", ["qwen3", "gemma3"])
    @pytest.mark.parametrize("names", ["attn_q_norm", "attn_k_norm", "_norm"])
    def test_norms(self, family: str, names: str, tmp_path: Path) -> None:
        kept = {name: t for name, t in gb.model_tensors(family).items() if not ("blk" in name and names in name)}
        with pytest.raises(CheckpointError, match=rf"missing blk\.0\..*{names}"):
            open_model(gb.write(tmp_path / "m.gguf", gb.model_metadata(family), kept))

    def test_norms_that_the_family_has_not(self, tmp_path: Path) -> None:
        path = gb.write(tmp_path / "m.gguf", gb.model_metadata("llama"), gb.model_tensors("qwen3"))
        with pytest.raises(CheckpointError, match=r"extra blk\.0\.attn_q_norm\.weight"):
            open_model(path)


class Described:
    """Metadata and tensor names of a published model, without its numbers: what `read_config` asks a file for."""

    def __init__(self, path: Path, config: DecoderConfig, names: set[str]):
        family = {"qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}.get(config.family, config.family)
        mixture = "expert_" if config.experts else ""
        values = {
            "block_count": gb.number(1),
            "context_length": gb.number(config.max_positions),
            "embedding_length": gb.number(config.width),
            f"{mixture}feed_forward_length": gb.number(config.mlp_width),
            "attention.head_count": gb.number(config.heads),
            "attention.head_count_kv": gb.number(config.kv_heads),
            "attention.key_length": gb.number(config.head_width),
            "attention.value_length": gb.number(config.head_width),
            "attention.layer_norm_rms_epsilon": gb.real(config.norm_eps),
            "rope.freq_base": gb.real(config.rope.theta),
        }
        if config.experts:
            values |= {"expert_count": gb.number(config.experts)}
            values |= {"expert_used_count": gb.number(config.experts_per_token)}
        metadata = {"general.architecture": gb.name(family)}
        metadata |= {f"{family}.{key}": value for key, value in values.items()}
        self.file = GGUFFile(gb.write(path, metadata, {}))
        self.file.values._values[f"{family}.block_count"] = config.layers
        shapes = dict.fromkeys(names, (1,)) | {f"blk.{i}.ffn_norm.weight": (1,) for i in range(config.layers)}
        shapes["token_embd.weight"] = (config.vocab_size, config.width)
        self.file.shapes = lambda: shapes  # type: ignore[method-assign]


class TestWhatIsKnownOfPublishedModels:
    @pytest.mark.parametrize("name", ["qwen3-8b", "qwen3-14b", "qwen3-32b", "qwen2.5-7b", "qwen3-30b-a3b"])
    def test_a_lost_head(self, name: str, tmp_path: Path) -> None:
        config = preset(name).config
        with pytest.raises(CheckpointError, match=r"missing output\.weight"):
            read_config(Described(tmp_path / "m.gguf", config, set()).file)
        assert not read_config(Described(tmp_path / "m.gguf", config, {"output.weight"}).file).tied_head

    @pytest.mark.parametrize(
        ("like", "width", "layers"), [("llama-3.1-8b", 4096, 32), ("llama-3.1-8b", 5120, 40), ("qwen2.5-7b", 5120, 64)]
    )
    def test_a_lost_head_of_a_model_that_is_no_preset(self, like: str, width: int, layers: int, tmp_path: Path) -> None:
        sizes = {"width": width, "layers": layers, "mlp_width": 1234}
        config = preset(like).config.model_copy(update=sizes)
        with pytest.raises(CheckpointError, match=r"missing output\.weight: .* which has these sizes"):
            read_config(Described(tmp_path / "m.gguf", config, set()).file)

    @pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-4b", "qwen2.5-3b", "smollm2-1.7b"])
    def test_tied_models(self, name: str, tmp_path: Path) -> None:
        config = preset(name).config
        assert read_config(Described(tmp_path / "m.gguf", config, set()).file) == config

    @pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-8b"])
    def test_lost_frequency_factors(self, name: str, tmp_path: Path) -> None:
        config = preset(name).config
        with pytest.raises(CheckpointError, match=r"missing rope_freqs\.weight: llama-3\.\d-\db"):
            read_config(Described(tmp_path / "m.gguf", config, {"output.weight"}).file)

    def test_llama_3_has_the_sizes_of_3_1_and_no_factors(self, tmp_path: Path) -> None:
        config = preset("llama-3.1-8b").config.model_copy(update={"max_positions": 8192})
        read = read_config(Described(tmp_path / "m.gguf", config, {"output.weight"}).file)
        assert read.rope.kind == "plain"
