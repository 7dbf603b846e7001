"""What is given as a model and is none: one line says what it is, and what to give instead."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from psynth_jax.convert.load import load_model, open_model
from psynth_jax.convert.safetensors_file import read_json
from psynth_jax.errors import CheckpointError, UserError
from psynth_jax.nn.decoder import Decoder
from tests.convert.test_hf import LLAMA, random_tensors, write_model
from tests.tiny import tiny_config

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 269060552\n"
MODEL = ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return write_model(folder, LLAMA, random_tensors(LLAMA))


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(source)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1000
    return said


class TestPointers:
    @pytest.mark.parametrize("name", MODEL)
    def test_in_a_directory(self, directory: Path, name: str) -> None:
        (directory / name).write_text(POINTER)
        assert refusal(directory) == (
            f"{directory / name} is a Git LFS pointer, not the file itself: run `git lfs pull` in {directory}"
        )

    def test_of_a_shard(self, tmp_path: Path) -> None:
        write_model(tmp_path, LLAMA, random_tensors(LLAMA), shards=3)
        (tmp_path / "model-00002-of-00003.safetensors").write_text(POINTER)
        assert "model-00002-of-00003.safetensors is a Git LFS pointer" in refusal(tmp_path)

    @pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
    def test_of_a_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text(POINTER)
        assert f"{name} is a Git LFS pointer" in refusal(tmp_path / name)


class TestDirectories:
    def test_of_a_trainer(self, directory: Path, tmp_path: Path) -> None:
        for step in (500, 1000, 60):
            (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
            (tmp_path / "run" / f"checkpoint-{step}" / "config.json").write_text(json.dumps(LLAMA))
        (tmp_path / "run" / "trainer_state.json").write_text("{}")
        assert refusal(tmp_path / "run").endswith(f"give one of them, such as {tmp_path}/run/checkpoint-1000")
        assert refusal(tmp_path).endswith(f"folders that may be meant; give one of them, such as {directory}")

    def test_of_a_trainer_with_a_config_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(LLAMA))
        (tmp_path / "checkpoint-9").mkdir()
        (tmp_path / "checkpoint-9" / "config.json").write_text(json.dumps(LLAMA))
        said = refusal(tmp_path)
        assert "has neither model.safetensors nor" in said and said.endswith(f"such as {tmp_path}/checkpoint-9")

    def test_of_a_trainer_of_adapters(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint-9").mkdir()
        (tmp_path / "checkpoint-9" / "adapter_config.json").write_text("{}")
        said = refusal(tmp_path)
        assert "it holds adapters of PEFT" in said and said.endswith(f"such as {tmp_path}/checkpoint-9")

    def test_with_weights_of_another_name(self, directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "smol.safetensors")
        assert refusal(directory).endswith("but smol.safetensors: its names are not those of a whole model")

    @pytest.mark.parametrize("base", ["Qwen/Qwen3-14B", None, 7])
    def test_of_peft(self, tmp_path: Path, base: object) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        said = refusal(tmp_path)
        assert "is an adapter of PEFT" in said and ("Qwen/Qwen3-14B" in said) == (base == "Qwen/Qwen3-14B")

    @pytest.mark.parametrize("name", ["psynth_adapter.json", "cache_mapper.pt"])
    def test_of_an_adapter(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("{}")
        assert "it is an adapter; give its base" in refusal(tmp_path)

    def test_of_the_hub_cache(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        said = refusal(tmp_path / "models--Qwen--Qwen3-0.6B")
        assert said.endswith(f"it is a folder of the hub's cache; give Qwen/Qwen3-0.6B or {snapshot}")
        assert "it is the hub's cache" in refusal(tmp_path)

    def test_with_pickles_only(self, directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        said = refusal(directory)
        assert "torch pickle" in said and "save_pretrained" in said

    def test_with_gguf_files(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_text("")
        assert refusal(tmp_path).endswith(f"give the file {tmp_path / 'm.gguf'}")

    def test_of_a_run_of_ours(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        assert "training run of psynth" in refusal(tmp_path)

    def test_with_nothing(self, tmp_path: Path) -> None:
        assert refusal(tmp_path) == f"{tmp_path} has no config.json"


class TestSpecialFiles:
    @pytest.mark.parametrize("name", [*MODEL, "model.safetensors.index.json", "chat_template.jinja", "merges.txt"])
    def test_a_fifo_is_refused(self, directory: Path, name: str) -> None:
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
        assert refusal(directory) == f"{directory / name} is not a regular file"

    def test_among_further_templates(self, directory: Path) -> None:
        (directory / "additional_chat_templates").mkdir()
        os.mkfifo(directory / "additional_chat_templates" / "tool_use.jinja")
        assert "tool_use.jinja is not a regular file" in refusal(directory)

    def test_a_shard(self, tmp_path: Path) -> None:
        write_model(tmp_path, LLAMA, random_tensors(LLAMA), shards=2)
        (tmp_path / "model-00001-of-00002.safetensors").unlink()
        os.mkfifo(tmp_path / "model-00001-of-00002.safetensors")
        assert "is not a regular file" in refusal(tmp_path)

    @pytest.mark.parametrize("name", ["model.gguf", "model"])
    def test_given_as_a_model(self, tmp_path: Path, name: str) -> None:
        os.mkfifo(tmp_path / name)
        assert refusal(tmp_path / name) == f"{tmp_path / name} is not a regular file"

    def test_within_ours(self, directory: Path, tmp_path: Path) -> None:
        from psynth_jax.convert.convert import convert

        convert(directory, tmp_path / "ours", "psynth")
        for file in sorted(path for path in (tmp_path / "ours" / "parameters").rglob("*") if path.is_file()):
            kept = file.read_bytes()
            file.unlink()
            os.mkfifo(file)
            assert "is not a regular file" in refusal(tmp_path / "ours")
            file.unlink()
            file.write_bytes(kept)
        load_model(tmp_path / "ours")


class TestJson:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b'{"a": {"b": [1, NaN]}}', "a.b is not a finite number"),
            (b'{"a": Infinity}', "a is not a finite number"),
            (b'{"a": -1e999}', "a is not a finite number"),
            (b'{"a": "\xff"}', "is not a UTF-8 text file"),
            ('{"a": 1}'.encode("utf-16"), "is not a UTF-8 text file"),
            (b"[" * 200_000, "is not valid JSON"),
            (b'{"a":' * 200_000, "is not valid JSON"),
            (b'{"a": ' + b"9" * 6000 + b"}", "is not valid JSON"),
            (b"", "is not valid JSON"),
        ],
        ids=range(9),
    )
    @pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
    def test_what_cannot_be_read_is_named(self, directory: Path, name: str, text: bytes, said: str) -> None:
        if name.startswith("model"):
            (directory / "model.safetensors").unlink()
        (directory / name).write_bytes(text)
        told = refusal(directory)
        assert said in told and told.startswith(str(directory / name))

    def test_a_byte_order_mark_is_taken(self, directory: Path) -> None:
        (directory / "config.json").write_bytes(b"\xef\xbb\xbf" + (directory / "config.json").read_bytes())
        assert open_model(directory).config.layers == LLAMA["num_hidden_layers"]

    def test_numbers_that_are_none_may_be_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"loss": NaN}')
        assert read_json(tmp_path / "a.json", finite=False)["loss"] != 0
        with pytest.raises(CheckpointError, match="loss is not a finite number"):
            read_json(tmp_path / "a.json")


DEEP = {**LLAMA, "num_hidden_layers": 40}


class TestLongLists:
    @pytest.mark.parametrize(
        "renamed",
        [
            lambda name: "module." + name,
            lambda name: "base_model.model." + name,
            lambda name: "language_model." + name,
            lambda name: "model." + name,
            lambda name: name.replace("model.", "model.language_model."),
            lambda name: name.replace("lm_head", "_orig_mod.lm_head").replace("model.", "_orig_mod.model."),
        ],
    )
    def test_a_prefix_is_named(self, tmp_path: Path, renamed: Callable[[str], str]) -> None:
        tensors = {renamed(name): values for name, values in random_tensors(DEEP).items()}
        said = refusal(write_model(tmp_path, DEEP, tensors))
        assert "they fit without '" in said and "(1 problem)" in said
        part = said.rsplit("'", 2)[1]
        assert {name.replace(part, "", 1) for name in tensors} == random_tensors(DEEP).keys()

    def test_what_else_is_wrong_is_told_behind_it(self, tmp_path: Path) -> None:
        tensors = {f"module.{name}": values for name, values in random_tensors(DEEP).items()}
        del tensors["module.model.norm.weight"]
        said = refusal(write_model(tmp_path, DEEP, tensors))
        assert "without 'module.'" in said and "missing model.norm.weight [22]" in said and "(2 problems)" in said

    def test_a_missing_prefix_is_named(self, tmp_path: Path) -> None:
        tensors = {name.removeprefix("model."): values for name, values in random_tensors(DEEP).items()}
        assert "its names lack 'model.' before them" in refusal(write_model(tmp_path, DEEP, tensors))

    def test_eight_and_a_count(self, tmp_path: Path) -> None:
        tensors = {f"{name}.old": values for name, values in random_tensors(DEEP).items()}
        said = refusal(write_model(tmp_path, DEEP, tensors))
        assert f"({2 * len(tensors)} problems)" in said and said.endswith(f"; and {2 * len(tensors) - 8} more")

    def test_of_shards(self, tmp_path: Path) -> None:
        names = {f"tensor{i}": f"model-{i:05}.safetensors" for i in range(300)}
        (tmp_path / "config.json").write_text(json.dumps(LLAMA))
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        assert "and 292 more" in refusal(tmp_path)

    def test_of_a_decoder(self) -> None:
        with pytest.raises(CheckpointError, match=r"; and \d+ more$") as caught:
            Decoder(tiny_config(), {f"x{i}": 0 for i in range(500)})  # type: ignore[misc]
        assert len(str(caught.value)) < 1000

    def test_more_tensors_than_anyone_has(self, tmp_path: Path) -> None:
        raw = {**LLAMA, "num_hidden_layers": 9_999}
        said = refusal(write_model(tmp_path, raw, random_tensors(LLAMA)))
        assert "the config describes 89994 tensors, and there are 30" in said
