"""SentencePiece's tokenizers out of GGUF files: the same ids as transformers builds from the same file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="tokenizers are transformers'")

import psynth_jax as ps
from psynth_jax.convert.convert import convert
from psynth_jax.convert.gguf import GGUFFile
from psynth_jax.convert.load import open_model
from psynth_jax.errors import CheckpointError, ContextLengthError, InputError
from psynth_jax.tokenizer import TextStream, Tokenizer
from tests.convert import gguf_bytes as gb
from tests.convert.gguf_bytes import BOOL, SPACE, STRING, Typed

TEXTS = [
    "",
    " ",
    "the hat",
    " that hat in the tin",
    "  two   three    four ",
    "\n\n\nlines\n \n\ttab\r\n",
    "naïve café — 日本語 🙂👩‍👩‍👧 e\u0301",
    "<eos>the<bos> <unk><pad></s><s>[X] [Y]<table>",
    "<start_of_turn>user\nhe<end_of_turn>\n",
    "<0x41>\x00\x7f\ufeff\u200b",
    f"{SPACE}the{SPACE}{SPACE}hat",
    "nonsense" * 40,
    chr(0xE000) + chr(0x10FFFF),
]


def texts(count: int = 300) -> list[str]:
    rng = random.Random(11)
    pieces = ["the", "that", " ", "  ", "\n", "s\n", "he", "é", "日", "🙂", "<eos>", "[X]", "a", "n", "\t", "<table>"]
    return [*TEXTS, *("".join(rng.choices(pieces, k=rng.randrange(1, 15))) for _ in range(count))]


def model(folder: Path, family: str, name: str = "m.gguf", **changed: Typed | None) -> Path:
    metadata = {**gb.model_metadata(family), **gb.sentencepiece_metadata(family == "gemma3", **changed)}
    return gb.write(folder / name, metadata, gb.model_tensors(family))


def tokenizer(folder: Path, family: str = "llama", **changed: Typed | None) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(model(folder, family, **changed)).tokenizer_metadata())


def pieces(built: Tokenizer, text: str) -> list[str]:
    return [str(built.backend.convert_ids_to_tokens(i)) for i in built.encode(text)]


class TestEncode:
    def test_merges_follow_the_scores(self, tmp_path: Path) -> None:
        built = tokenizer(tmp_path)
        assert pieces(built, "that") == [f"{SPACE}that"]
        assert pieces(built, "in that") == [SPACE, "in", f"{SPACE}that"]
        plain = Typed(BOOL, False)
        assert pieces(tokenizer(tmp_path, ggml__add_space_prefix=plain), "ana") == ["an", "a"]
        stored = gb.sentencepiece_metadata()
        scores = list(stored["tokenizer.ggml.scores"].value)
        scores[stored["tokenizer.ggml.tokens"].value.index("na")] = 1.0
        other = tokenizer(tmp_path, ggml__scores=Typed(gb.ARRAY, scores, gb.F32), ggml__add_space_prefix=plain)
        assert pieces(other, "ana") == ["a", "na"]

    def test_bytes_of_unknown_characters(self, tmp_path: Path) -> None:
        built = tokenizer(tmp_path)
        assert pieces(built, "🙂") == [SPACE, "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
        assert built.decode(built.encode("🙂")) == "🙂"

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    @pytest.mark.parametrize("text", TEXTS[1:7])
    def test_there_and_back(self, family: str, text: str, tmp_path: Path) -> None:
        if family == "llama":
            text = text.lstrip(" ")  # transformers takes a first space for the one that is put before a text
        built = tokenizer(tmp_path, family)
        ids = built.encode(text)
        stream = TextStream(built)
        assert built.decode(ids) == text
        assert "".join(stream.push(index) for index in ids) + stream.finish() == text

    def test_prefix(self, tmp_path: Path) -> None:
        assert pieces(tokenizer(tmp_path), "he") == [SPACE, "he"]
        assert pieces(tokenizer(tmp_path, ggml__add_space_prefix=None), "he") == [SPACE, "he"]
        assert pieces(tokenizer(tmp_path, ggml__add_space_prefix=Typed(BOOL, False)), "he") == ["he"]
        assert pieces(tokenizer(tmp_path, "gemma3", ggml__add_space_prefix=None), "he") == ["he"]

    def test_no_token_is_added_and_the_end_is_known(self, tmp_path: Path) -> None:
        llama, gemma = tokenizer(tmp_path), tokenizer(tmp_path, "gemma3")
        assert llama.encode("") == gemma.encode("") == []
        assert llama.stop_ids == {2, llama.encode("<end_of_turn>")[0]}
        assert gemma.stop_ids == {1, gemma.encode("<end_of_turn>")[0]}
        assert (llama.size, gemma.size) == (300, 300)

    def test_stored_merges_win(self, tmp_path: Path) -> None:
        built = tokenizer(tmp_path, ggml__merges=gb.names(["t h"]), ggml__add_space_prefix=Typed(BOOL, False))
        assert pieces(built, "that") == ["th", "a", "t"]


class TestRefusals:
    def test_text_that_would_be_lost(self, tmp_path: Path) -> None:
        tokens = [token.replace("<0x", "<1x") for token in gb.sentencepiece_metadata()["tokenizer.ggml.tokens"].value]
        assert pieces(tokenizer(tmp_path, ggml__tokens=gb.names(tokens)), "🙂") == [SPACE, "<unk>"]
        with pytest.raises(CheckpointError, match=r"256 of the 256 tokens of bytes .* text would be lost"):
            tokenizer(tmp_path, ggml__tokens=gb.names(tokens), ggml__unknown_token_id=None)

    def test_scores(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="has 300 tokens and 2 scores"):
            tokenizer(tmp_path, ggml__scores=Typed(gb.ARRAY, [1.0, 2.0], gb.F32))
        with pytest.raises(CheckpointError, match=r"no metadata tokenizer\.ggml\.scores"):
            tokenizer(tmp_path, ggml__scores=None)

    @pytest.mark.parametrize("token", ["a b", "$A", "x:1", ""])
    @pytest.mark.parametrize("role", ["bos", "eos"])
    def test_a_token_that_a_template_cannot_spell(self, role: str, token: str, tmp_path: Path) -> None:
        """transformers writes bos and eos into a small language of its own, where $A is the whole text."""
        tokens = [token, *gb.sentencepiece_metadata()["tokenizer.ggml.tokens"].value[1:]]
        changed = {f"ggml__{role}_token_id": gb.number(0), f"ggml__add_{role}_token": Typed(BOOL, True)}
        with pytest.raises(CheckpointError, match=rf"tokenizer\.ggml\.{role}_token_id must be a token without"):
            tokenizer(tmp_path, ggml__tokens=gb.names(tokens), **changed)
        changed[f"ggml__add_{role}_token"] = Typed(BOOL, False)
        built = tokenizer(tmp_path, ggml__tokens=gb.names(tokens), **changed)
        assert built.decode(built.encode("he")) == "he"

    def test_no_chat_template(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="this model's tokenizer has no chat template"):
            tokenizer(tmp_path, "gemma3").chat([{"role": "user", "content": "Hi"}])
        template = Typed(STRING, "{{ bos_token }}{{ messages[0].content }}")
        templated = tokenizer(tmp_path, "gemma3", chat_template=template)
        assert templated.chat([{"role": "user", "content": "he"}]) == [2, *templated.encode("he")]


@pytest.mark.slow
def test_a_question_over_branches(tmp_path: Path) -> None:
    """From the file's chat template to an answer, within the positions of the model."""
    template = Typed(STRING, "{{ bos_token }}{% for m in messages %}{{ m.content }}<end_of_turn>{% endfor %}")
    path = model(tmp_path, "gemma3", chat_template=template)
    synth = ps.ParallelSynthesis(ps.load_model(path))
    branches = synth.encode(["that hat in the tin", "the hat"])
    answer = synth.synthesize("that?", branches=branches, max_new_tokens=4)
    alone = synth.synthesize("that?", max_new_tokens=4)
    assert answer.cached_tokens == sum(branches.lengths)
    assert (alone.cached_tokens, alone.text) != (answer.cached_tokens, answer.text)
    with pytest.raises(ContextLengthError):
        synth.synthesize("that " * 250, branches=branches, max_new_tokens=4)


def converted(source: Path, target: Path) -> Any:
    from transformers import AutoTokenizer

    convert(source, target, "hf")
    return AutoTokenizer.from_pretrained(target)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("bos", [True, False])
def test_converted(family: str, bos: bool, tmp_path: Path) -> None:
    """transformers reads what `convert` writes as the same tokenizer, and adds bos by itself where the file says so."""
    source = model(tmp_path, family, ggml__add_bos_token=Typed(BOOL, bos))
    ours, theirs = open_model(source).tokenizer, converted(source, tmp_path / "hf")
    again = open_model(tmp_path / "hf").tokenizer
    convert(tmp_path / "hf", tmp_path / "ours", "psynth")
    kept = open_model(tmp_path / "ours").tokenizer
    assert ours is not None
    assert again is not None
    assert kept is not None
    for text in texts(60):
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs(text).input_ids == [ours.backend.bos_token_id] * bos + ids
        assert again.encode(text) == kept.encode(text) == ids
        assert theirs.decode(ids) == ours.backend.decode(ids)
    assert again.stop_ids == kept.stop_ids == ours.stop_ids
    assert again.fingerprint == kept.fingerprint == ours.fingerprint


@pytest.mark.torch  # transformers reads GGUF only where torch is installed
class TestAgainstTransformers:
    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    @pytest.mark.parametrize("bos", [True, False, None])
    def test_ids_and_texts(self, family: str, bos: bool | None, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        said = None if bos is None else Typed(BOOL, bos)
        path = model(tmp_path, family, ggml__add_bos_token=said)
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
        ours = open_model(path).tokenizer
        assert ours is not None
        for text in texts():
            ids = ours.encode(text)
            assert ids == theirs(text, add_special_tokens=False).input_ids, text
            assert ours.backend(text).input_ids == theirs(text).input_ids, text
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text

    def test_stored_merges(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        path = model(tmp_path, "llama", ggml__merges=gb.names(["t h", "h e", "th at"]))
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
        ours = open_model(path).tokenizer
        assert ours is not None
        for text in texts(80):
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
