"""Tokenizer files as they come from elsewhere: newer, damaged, or naming what no tokenizer is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import CheckpointError
from psynth_jax.tokenizer import Tokenizer
from psynth_jax.tokenizer_files import has_tokenizer, load_backend
from tests.tiny import byte_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_tokenizer().backend.save_pretrained(tmp_path)
    return tmp_path


def change(file: Path, *path: Any, value: Any) -> None:
    """Set a value inside a JSON file."""
    content = json.loads(file.read_text()) if file.exists() else {}
    inside = content
    for part in path[:-1]:
        inside = inside[part]
    inside[path[-1]] = value
    file.write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as found:
        load_backend(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_good_one(folder: Path) -> None:
    assert has_tokenizer(folder)
    tokenizer = Tokenizer.from_directory(folder)
    assert tokenizer is not None
    assert tokenizer.encode("disk") == byte_tokenizer().encode("disk")


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert not has_tokenizer(tmp_path)
    assert Tokenizer.from_directory(tmp_path) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "type"), "BPE-2"),  # of a newer version of the library
        (("version",), "9.0"),
        (("pre_tokenizer", "type"), "ByteLevel2"),
        (("model", "vocab", "!"), -1),
        (("model", "merges"), [["no", "such"]]),
        (("added_tokens", 0, "id"), "x"),
        (("decoder",), 3),
    ],
)
def test_tokenizer_json_is_named(folder: Path, path: tuple[Any, ...], value: Any) -> None:
    file = folder / "tokenizer.json"
    change(file, *path, value=value)
    assert refusal(folder).startswith(f"{file} cannot be read: ")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "null", "\ufeff{}", "[" * 5000, "<html>"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_what_is_no_object_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert refusal(folder).startswith(f"{folder / name} ")


def test_a_pointer_of_git_lfs(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    ["AutoModelForCausalLM", "LlamaForCausalLM", "pipeline", "AutoTokenizer", "Trainer", "../Tokenizer", "", 3, [], True],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_only_tokenizers_are_made(folder: Path, file: str, name: Any) -> None:
    """transformers would give the directory to any class of its own: a model's, which reads pickles."""
    if file == "config.json":
        change(folder / file, "model_type", value="llama")
        change(folder / "tokenizer_config.json", "tokenizer_class", value=None)
    change(folder / file, "tokenizer_class", value=name)
    said = refusal(folder)
    assert said.startswith(f"{folder / file}: tokenizer_class must name a tokenizer")


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast", "SomeNewTokenizer"])
def test_names_of_tokenizers(folder: Path, name: str) -> None:
    change(folder / "tokenizer_config.json", "tokenizer_class", value=name)
    tokenizer = Tokenizer.from_directory(folder)
    assert tokenizer is not None
    assert tokenizer.encode("disk") == byte_tokenizer().encode("disk")


def test_code_of_the_directory_is_never_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "tokenization_own.py").write_text("raise SystemExit('ran')\n")
    change(folder / "tokenizer_config.json", "auto_map", value={"AutoTokenizer": ["tokenization_own.Own", None]})
    change(folder / "tokenizer_config.json", "tokenizer_class", value="OwnTokenizer")
    assert "cannot be loaded: The repository" in refusal(folder)
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("value", [5, True, [], {}, {"content": 5}, {"content": None}, 1.5])
def test_special_tokens_are_texts(folder: Path, value: Any) -> None:
    file = folder / "tokenizer_config.json"
    change(file, "eos_token", value=value)
    assert refusal(folder).startswith(f"{file}: eos_token must be a text, not ")


@pytest.mark.parametrize("value", [5, True])
def test_a_chat_template_is_a_text(folder: Path, value: Any) -> None:
    file = folder / "tokenizer_config.json"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change(file, "chat_template", value=value)
    assert refusal(folder).startswith(f"{file}: chat_template must be a text, not ")
