"""Damaged models: config, tokenizer, weights, as directories of Hugging Face and of ours and as GGUF."""

from __future__ import annotations

import pytest

import psynth_jax as ps
from psynth_jax.convert.load import open_model
from tests.fuzz.files import write_gguf, write_sharded
from tests.fuzz.harness import Command, Kind, Place, Said, called, fuzz
from tests.fuzz.mutations import (
    damage_bytes,
    damage_finite,
    damage_gguf,
    damage_json,
    damage_safetensors,
    damage_tokens,
)

pytestmark = pytest.mark.filterwarnings("default")

MESSAGES = [{"role": "user", "content": "Why <|im_end|> is the disk full?"}]


def _info(model: str) -> Said:
    def use(place: Place, command: Command) -> Said:
        return command("info", "--model", model, "--json")

    return use


def _load(model: str) -> Said:
    """Load what can be described; a config may promise what no tensor keeps."""

    def use(place: Place, command: Command) -> Said:
        said = command("info", "--model", model, "--json")
        return said if said.code else called(lambda: ps.load_model(model))

    return use


def _text(model: str) -> Said:
    """Turn a text and a conversation into tokens and back."""

    def tokens() -> None:
        tokenizer = open_model(model).tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode("Why is\tthe disk full? \u00fc\U0001f642")
        tokenizer.decode(ids)
        assert len(tokenizer.fingerprint) == 64 and tokenizer.size > 0
        tokenizer.chat(MESSAGES)

    def use(place: Place, command: Command) -> Said:
        said = command("info", "--model", model, "--json")
        return said if said.code else called(tokens)

    return use


def _convert(model: str, to: str = "hf") -> Said:
    """Read all that is there."""

    def use(place: Place, command: Command) -> Said:
        return command("convert", model, place.out / "made", "--to", to, "--json")

    return use


_STATE = "ours/parameters/state/"
_PROCESS = _STATE + "ocdbt.process_07132e2696b2a46c0968ff6f65d73438b/"
KINDS = [
    Kind("config.json", ("hf/config.json",), damage_json, _load("hf")),
    Kind("generation_config.json", ("hf/generation_config.json",), damage_json, _info("hf")),
    Kind("tokenizer.json", ("hf/tokenizer.json",), damage_json, _text("hf")),
    Kind("tokenizer_config.json", ("hf/tokenizer_config.json",), damage_json, _text("hf")),
    Kind("chat template", ("hf/chat_template.jinja",), damage_tokens, _text("hf")),
    Kind("safetensors", ("hf/model.safetensors",), damage_safetensors, _convert("hf")),
    Kind("safetensors, not finite", ("hf/model.safetensors",), damage_finite, _convert("hf", "psynth")),
    Kind("index of safetensors", ("sharded/model.safetensors.index.json",), damage_json, _convert("sharded")),
    Kind("GGUF", ("model.gguf",), damage_gguf, _text("model.gguf")),
    Kind("GGUF, all of it", ("model.gguf",), damage_bytes, _convert("model.gguf")),
    Kind("our model, described", ("ours/psynth_model.json", _STATE + "_METADATA"), damage_json, _load("ours")),
    Kind(
        "our model, stored",
        (
            _STATE + "manifest.ocdbt",
            _STATE + "d/22dc8e4e7fd636d94c2f8218a9b32e1f",
            _PROCESS + "manifest.ocdbt",
            _PROCESS + "d/4877e84c34e9391954d99f1dab9677a7",
            _PROCESS + "d/4b451cc1ad352c5f019314d4fc52306c",
            _PROCESS + "d/a5f3c5df7267eaeb877752ce64ce3642",
        ),
        damage_bytes,
        _convert("ours"),
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _more_models(place: Place) -> None:
    write_sharded(place.tree)
    write_gguf(place.tree)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged(kind: Kind, place: Place, command: Command) -> None:
    fuzz(kind, place, command)
