"""Tokenizers built from GGUF metadata and read from directories, chat templates, end tokens, streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="tokenizers are transformers'")

from tokenizers.pre_tokenizers import ByteLevel

from psynth_jax.errors import CheckpointError, InputError, UnsupportedModelError
from psynth_jax.tokenizer import TextStream, Tokenizer
from tests.tiny import BYTES_VOCABULARY, byte_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if brief %}Short:{% endif %}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "[PAD262]"]
MERGED = ["he", "ll", "hell", "hello", "Ġw", "or", "Ġwor", "12", "34"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "1 2", "3 4"]
TEXTS = [
    "hello world",
    "12 34 1234",
    " two  spaces\n\n\ttab",
    "naïve café",
    "日本語 🙂👩‍👩‍👧",
    "e\u0301",
    "",
    "<|im_end|> <tool>",
]


def metadata(split: str = "gpt-2", **changed: Any) -> dict[str, Any]:
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*SPECIALS[:4], *alphabet, *MERGED, SPECIALS[4]]
    types = [3, 3, 3, 4, *[1] * (len(alphabet) + len(MERGED)), 5]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    values |= {f"tokenizer.{key.replace('__', '.')}": value for key, value in changed.items()}
    return {key: value for key, value in values.items() if value is not None}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(metadata())


class TestEncode:
    @pytest.mark.parametrize("split", ["gpt-2", "default", "smollm", "llama-bpe", "qwen2"])
    @pytest.mark.parametrize("text", TEXTS[:5])
    def test_there_and_back(self, split: str, text: str) -> None:
        tokenizer = Tokenizer.from_gguf(metadata(split))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= index < 269 for index in ids)

    def pieces(self, split: str, text: str) -> list[str]:
        tokenizer = Tokenizer.from_gguf(metadata(split))
        return [tokenizer.decode([index]) for index in tokenizer.encode(text)]

    def test_digits(self) -> None:
        assert self.pieces("gpt-2", "1234") == ["12", "34"]
        assert self.pieces("smollm", "1234") == ["1", "2", "3", "4"]
        assert self.pieces("qwen2", "1234") == ["1", "2", "3", "4"]
        assert self.pieces("llama-bpe", "123412") == ["12", "3", "4", "12"]  # groups of three: 123 412

    def test_words_that_no_merge_leads_to(self) -> None:
        """Llama 3's vocabulary has whole words beside its merges."""
        changed = {"ggml__merges": [merge for merge in MERGES if merge != "hell o"]}
        pieces = {}
        for split in ("llama-bpe", "qwen2"):
            built = Tokenizer.from_gguf(metadata(split, **changed))
            pieces[split] = [built.decode([index]) for index in built.encode("hello")]
        assert pieces == {"llama-bpe": ["hello"], "qwen2": ["hell", "o"]}

    def test_only_qwen_composes_characters(self) -> None:
        assert Tokenizer.from_gguf(metadata("qwen2")).encode("e\u0301") == Tokenizer.from_gguf(metadata("qwen2")).encode("é")
        assert self.pieces("gpt-2", "e\u0301")[0] == "e"

    def test_no_token_is_added(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.encode("") == []
        assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
        assert len(tokenizer.encode("hello")) == 1

    def test_special_tokens_are_whole_and_left_out_of_text(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.encode("<|im_start|>") == [1]
        assert tokenizer.decode([1, *tokenizer.encode("hello"), 2]) == "hello"
        assert tokenizer.encode("<tool>") == [3]
        assert tokenizer.decode([3]) == "<tool>"  # user-defined, not special
        assert len(tokenizer.encode("[PAD262]")) > 1  # unused: no text means it


class TestEndTokens:
    def test_named_and_called(self) -> None:
        assert Tokenizer.from_gguf(metadata()).stop_ids == {0, 2}
        assert Tokenizer.from_gguf(metadata(ggml__eos_token_id=5, ggml__eot_token_id=7)).stop_ids == {0, 2, 5, 7}

    def test_only_control_tokens_are_called_so(self) -> None:
        types = [1, 3, 1, *metadata()["tokenizer.ggml.token_type"][3:]]
        assert Tokenizer.from_gguf(metadata(ggml__token_type=types, ggml__eos_token_id=1)).stop_ids == {1}

    def test_of_the_model_and_the_tokenizer(self, tokenizer: Tokenizer) -> None:
        assert Tokenizer(tokenizer.backend, [7, 9]).stop_ids == {2, 7, 9}


class TestChat:
    MESSAGES = ({"role": "user", "content": "hello"},)

    def test_text(self, tokenizer: Tokenizer) -> None:
        body = "<|im_start|><|im_start|>user\nhello<|im_end|>\n"
        assert tokenizer.chat_text(self.MESSAGES) == body + "<|im_start|>assistant\n"
        assert tokenizer.chat_text(self.MESSAGES, add_generation_prompt=False) == body
        assert tokenizer.chat_text(self.MESSAGES, brief=True).endswith("assistant\nShort:")

    def test_tokens_are_those_of_the_text(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.chat(self.MESSAGES)
        assert ids == tokenizer.encode(tokenizer.chat_text(self.MESSAGES))
        assert ids.count(1) == 3

    def test_without_a_template(self) -> None:
        plain = Tokenizer.from_gguf(metadata(chat_template=None))
        with pytest.raises(InputError, match="no chat template"):
            plain.chat(self.MESSAGES)

    @pytest.mark.parametrize("messages", ["hello", [{"role": "user"}], [{"content": "x"}], [["user", "x"]]])
    def test_malformed_messages(self, tokenizer: Tokenizer, messages: Any) -> None:
        with pytest.raises(InputError, match="a chat message must be"):
            tokenizer.chat_text(messages)

    def test_messages_that_the_template_refuses(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(InputError, match="no tools"):
            tokenizer.chat_text([{"role": "tool", "content": "x"}])


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "error", "named"),
        [
            ({"ggml__model": "bert"}, UnsupportedModelError, "'bert' .* gpt2"),
            ({"ggml__pre": "tekken"}, UnsupportedModelError, "pre-tokenizer 'tekken' .* qwen2"),
            ({"ggml__merges": None}, CheckpointError, r"tokenizer\.ggml\.merges"),
            ({"ggml__token_type": [1, 1]}, CheckpointError, "270 tokens and 2 token types"),
            ({"ggml__merges": ["x yz"]}, CheckpointError, "merges of the GGUF file do not fit"),
            ({"ggml__merges": ["x"]}, CheckpointError, "merges of the GGUF file do not fit"),
        ],
    )
    def test_metadata(self, changed: dict[str, Any], error: type[Exception], named: str) -> None:
        with pytest.raises(error, match=named):
            Tokenizer.from_gguf(metadata(**changed))

    def test_slow_tokenizer(self) -> None:
        with pytest.raises(UnsupportedModelError, match="not a fast tokenizer"):
            Tokenizer(object())  # type: ignore[arg-type]


class TestDirectory:
    def test_saved_and_loaded(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        tokenizer.backend.save_pretrained(tmp_path)
        loaded = Tokenizer.from_directory(tmp_path, end_tokens=[0])
        assert loaded is not None
        assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert loaded.chat_text(TestChat.MESSAGES) == tokenizer.chat_text(TestChat.MESSAGES)
        assert loaded.stop_ids == {0, 2}

    def test_settings_of_a_training_run_are_dropped(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        tokenizer.backend.save_pretrained(str(tmp_path))
        file = tmp_path / "tokenizer.json"
        saved = json.loads(file.read_text())
        saved["truncation"] = {"max_length": 8, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
        saved["padding"] = {
            "strategy": {"Fixed": 16},
            "direction": "Right",
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
            "pad_to_multiple_of": None,
        }
        file.write_text(json.dumps(saved))
        loaded = Tokenizer.from_directory(tmp_path)
        assert loaded is not None
        for text in ("x" * 100, "ab"):
            assert loaded.encode(text) == tokenizer.encode(text)

    def test_code_of_a_directory_is_not_run(
        self, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not even when the user would say yes."""
        tokenizer.backend.save_pretrained(str(tmp_path))
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
        settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            Tokenizer.from_directory(tmp_path)
        assert not (tmp_path / "ran").exists()

    def test_none(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        assert Tokenizer.from_directory(tmp_path) is None


class TestStream:
    @pytest.mark.parametrize("text", TEXTS)
    def test_pieces_make_the_text(self, tokenizer: Tokenizer, text: str) -> None:
        stream = TextStream(tokenizer)
        pieces = [stream.push(index) for index in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))
        assert stream.finish() == ""

    def test_a_character_comes_when_it_is_complete(self, tokenizer: Tokenizer) -> None:
        stream = TextStream(tokenizer)
        assert [stream.push(index) for index in tokenizer.encode("a🙂b")] == ["a", "", "", "", "🙂", "b"]

    def test_finish_gives_what_was_held_back(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("a🙂")[:-1]
        stream = TextStream(tokenizer)
        assert "".join(stream.push(index) for index in ids) == "a"
        assert stream.finish() == "\ufffd"
        assert stream.finish() == ""

    @pytest.mark.parametrize("seed", range(20))
    def test_any_bytes(self, tokenizer: Tokenizer, seed: int) -> None:
        """Bytes that are no text, special tokens in between: the pieces are still the text of all."""
        rng = np.random.default_rng(seed)
        parts = [tokenizer.encode("🙂é日 x"), [0, 1, 2, 3], list(range(4, 269))]
        ids = [int(index) for _ in range(60) for index in rng.choice(parts[rng.integers(3)], rng.integers(1, 5))]
        stream = TextStream(tokenizer)
        pieces = [stream.push(index) for index in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
        assert sum(map(bool, pieces)) > 20  # streamed, not kept for the end

    def test_decoders_that_drop_the_first_space(self) -> None:
        from tokenizers import Tokenizer as Fast
        from tokenizers import decoders, models
        from transformers import PreTrainedTokenizerFast

        fast = Fast(models.WordLevel({"▁one": 0, "▁two": 1, "s": 2, "<unk>": 3}, unk_token="<unk>"))
        fast.decoder = decoders.Metaspace()
        words = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast))
        stream = TextStream(words)
        assert [stream.push(index) for index in (0, 1, 2, 1)] == ["one", " two", "s", " two"]
        assert words.decode([0, 1, 2, 1]) == "one twos two"


class TestFingerprint:
    def test_is_that_of_the_same_tokenizer(self, tmp_path: Path) -> None:
        first = byte_tokenizer()
        first.encode("some text")
        first.backend.save_pretrained(tmp_path)
        loaded = Tokenizer.from_directory(tmp_path)
        assert loaded is not None
        assert first.fingerprint == byte_tokenizer().fingerprint
        assert len(first.fingerprint) == 64
        assert (loaded.size, loaded.end_id) == (first.size, first.end_id) == (BYTES_VOCABULARY, BYTES_VOCABULARY - 1)

    def test_changes_with_tokens_and_template(self) -> None:
        other_template, other_tokens = byte_tokenizer(), byte_tokenizer()
        other_template.backend.chat_template += " "
        other_tokens.backend.add_tokens(["whole"])
        assert len({t.fingerprint for t in (byte_tokenizer(), other_template, other_tokens)}) == 3
        assert other_tokens.size == BYTES_VOCABULARY + 1


@pytest.fixture(scope="module")
def ours(smollm2_path: Path) -> Tokenizer:
    from psynth_jax.convert.gguf import GGUFFile

    return Tokenizer.from_gguf(GGUFFile(smollm2_path).tokenizer_metadata())


@pytest.mark.weights
class TestSmolLM2:
    @pytest.mark.torch  # transformers reads GGUF only where torch is installed
    def test_equals_transformers_on_plain_text(self, ours: Tokenizer, smollm2_path: Path) -> None:
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        for text in [
            "The quick brown fox jumps over the lazy dog.",
            "It's a test, isn't it? She'll say: \"maybe\" (or not).",
            "def f(x):\n    return x + x\n\n\n",
            ours.chat_text(messages),
        ]:
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.chat_text(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def test_digits_stand_alone(self, ours: Tokenizer) -> None:
        ids = ours.encode("In 1987, 42.")
        assert [ours.decode([i]) for i in ids] == ["In", " ", "1", "9", "8", "7", ",", " ", "4", "2", "."]

    def test_unicode_there_and_back(self, ours: Tokenizer) -> None:
        text = "naïve — 日本語 🙂👩‍👩‍👧 Ω≈ç"
        ids = ours.encode(text)
        stream = TextStream(ours)
        assert ours.decode(ids) == text
        assert "".join(stream.push(index) for index in ids) == text

    def test_end_tokens_and_template(self, ours: Tokenizer) -> None:
        assert ours.stop_ids == {ours.encode("<|endoftext|>")[0], ours.encode("<|im_end|>")[0]}
        assert ours.chat([{"role": "user", "content": "Hi"}])[:1] == ours.encode("<|im_start|>")
        assert len(ours.backend) == 49_152
