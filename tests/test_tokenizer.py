"""Tokenizers built from GGUF metadata and read from directories, chat templates, end tokens, streaming."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="tokenizers are transformers'")

from tokenizers.pre_tokenizers import ByteLevel

from psynth_jax import tokenizer as tokenizer_module
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
        with pytest.raises(CheckpointError, match="must name a tokenizer"):
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


def tokenizer_of(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """Return the tokenizer with another chat template."""
    tokenizer.backend.chat_template = template
    return Tokenizer(tokenizer.backend)


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

    def test_changes_with_the_special_tokens_that_a_template_names(self) -> None:
        """They are part of what is rendered; a template that names none is not told from before."""
        plain, other_end = byte_tokenizer(), byte_tokenizer()
        other_end.backend.eos_token = "<|im_start|>"
        assert plain.fingerprints == (plain.fingerprint,) == other_end.fingerprints
        first, second = (tokenizer_of(tokenizer, "{{ eos_token }}") for tokenizer in (plain, other_end))
        messages = [{"role": "user", "content": "x"}]
        assert first.chat(messages) != second.chat(messages)
        assert first.fingerprint != second.fingerprint
        assert first.fingerprints[1] == second.fingerprints[1], "what 0.1.0 noted is accepted"


@pytest.fixture(scope="module")
def ours(smollm2_path: Path) -> Tokenizer:
    from psynth_jax.convert.gguf import GGUFFile

    return Tokenizer.from_gguf(GGUFFile(smollm2_path).tokenizer_metadata())


@pytest.mark.weights
class TestSmolLM2:
    @pytest.mark.slow
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


def templated(template: Any) -> Tokenizer:
    """A tokenizer of bytes with a chat template of its own."""
    tokenizer = byte_tokenizer()
    tokenizer.backend.chat_template = template
    return tokenizer


class TestForeignTemplates:
    """A chat template is code of whoever published the model: whatever it does, one line comes out."""

    MESSAGES = ({"role": "user", "content": "hello"},)

    @pytest.mark.parametrize(
        ("template", "said"),
        [
            ("{{ raise_exception('no way') }}", "no way"),
            ("{{ raise_exception('') }}", "TemplateError"),
            ("{{ 1 / 0 }}", "division by zero"),
            ("{{ messages[7].content }}", "no element 7"),
            ("{{ messages + 1 }}", "can only concatenate"),
            ("{{ missing.thing }}", "'missing' is undefined"),
            ("{% for m in messages %}", "Unexpected end of template"),
            ("{{ nowhere() }}", "'nowhere' is undefined"),
            ("{{ 'x'|unknown }}", "No filter named"),
            ("{{ ''.__class__.__mro__ }}", "unsafe"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
            ("{{ messages.append(1) }}", "unsafe"),
            ("{{ raise_exception('two\nlines') }}", "two lines"),
            ("{{ int('x') }}", "undefined"),
            ("{{ range(10 ** 9) }}", "Range too big"),
            ("{% include 'other' %}", "loader|other"),
        ],
    )
    def test_that_raise(self, template: str, said: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            templated(template).chat(self.MESSAGES)
        assert str(caught.value).startswith("the chat template does not accept these messages: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("error", [ZeroDivisionError("x"), RecursionError(), KeyError("role"), MemoryError(), OSError()])
    def test_errors_of_any_kind(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        tokenizer = byte_tokenizer()

        def failing(*_: Any, **__: Any) -> str:
            raise error

        monkeypatch.setattr(tokenizer.backend, "apply_chat_template", failing)
        with pytest.raises(InputError, match=r"the chat template does not accept these messages: .+"):
            tokenizer.chat(self.MESSAGES)

    def test_an_interruption_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = byte_tokenizer()

        def interrupted(*_: Any, **__: Any) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr(tokenizer.backend, "apply_chat_template", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.chat(self.MESSAGES)

    @pytest.mark.parametrize("template", ["{% if false %}x{% endif %}", "{# nothing #}", "{{ '' }}", " \n\n "])
    def test_that_render_nothing(self, template: str) -> None:
        with pytest.raises(InputError, match="the chat template renders nothing"):
            templated(template).chat(self.MESSAGES)

    def test_that_render_what_is_no_text(self) -> None:
        with pytest.raises(InputError, match="renders a lone surrogate"):
            templated("{{ '\\ud800' }}").chat(self.MESSAGES)

    @pytest.mark.parametrize(
        "loops", ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x", "{{ f() }}"]
    )
    def test_that_do_not_end(self, monkeypatch: pytest.MonkeyPatch, loops: str) -> None:
        monkeypatch.setattr(tokenizer_module, "RENDER_SECONDS", 0.2)
        macro = "{% macro f() %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endmacro %}"
        traced = sys.gettrace()
        with pytest.raises(InputError, match=r"has not ended after 0\.2 s"):
            templated(macro + loops).chat(self.MESSAGES)
        assert sys.gettrace() is traced

    def test_several_without_a_default(self) -> None:
        several = templated({"rag": "x", "tool_use": "tools: {{ tools }}"})
        with pytest.raises(InputError, match=r"several chat templates \(rag, tool_use\) and no default"):
            several.chat(self.MESSAGES)
        assert several.chat_text(self.MESSAGES, tools=[{"name": "f"}]).startswith("tools")
        assert templated({"rag": "x", "default": "yes"}).chat_text(self.MESSAGES) == "yes"

    def test_of_another_type(self) -> None:
        with pytest.raises(InputError, match="does not accept"):
            templated(7).chat(self.MESSAGES)


class TestText:
    @pytest.mark.parametrize("text", ["\ud800", "a\udc80b", "x" * 100 + "\udfff"])
    def test_lone_surrogates_are_refused(self, tokenizer: Tokenizer, text: str) -> None:
        with pytest.raises(InputError, match=r"lone surrogate \(U\+D...") as caught:
            tokenizer.encode(text)
        str(caught.value).encode()
        for message in (
            {"role": text, "content": "x"},
            {"role": "user", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "user", "content": "x", text: 1},
            {"role": "user", "content": "x", "name": {"deep": [text]}},
        ):
            with pytest.raises(InputError, match="lone surrogate"):
                tokenizer.chat_text([message])

    @pytest.mark.parametrize("text", [b"bytes", None, 7, ["a"], 1.5, bytearray(b"x")])
    def test_what_is_none_is_refused(self, tokenizer: Tokenizer, text: Any) -> None:
        with pytest.raises(InputError, match="must be a text"):
            tokenizer.encode(text)
        with pytest.raises(InputError, match="the role of a chat message must be a text"):
            tokenizer.chat_text([{"role": text, "content": "x"}])
        if not isinstance(text, list):
            with pytest.raises(InputError, match="the content of a chat message must be a text"):
                tokenizer.chat_text([{"role": "user", "content": text}])
        with pytest.raises(InputError, match="chat message"):
            tokenizer.chat_text([{"role": "user", "content": "x", "more": [b"x"]}])

    def test_tool_calls_need_no_content(self) -> None:
        calls = templated("{% for m in messages %}{{ m.tool_calls }}{% endfor %}")
        message = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
        assert "'f'" in calls.chat_text([message])

    def test_what_the_tokenizer_cannot_take_is_one_line(self) -> None:
        from tokenizers import Tokenizer as Fast
        from tokenizers import models
        from transformers import PreTrainedTokenizerFast

        fast = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=Fast(models.WordLevel({"a": 0}, unk_token="<unk>"))))
        with pytest.raises(InputError, match="does not take the text 'b'"):
            fast.encode("b")


class TestTemplateVariables:
    TEMPLATE = "{% if enable_thinking is false %}short{% else %}long{% endif %}{{ depth }}:{{ messages[0].content }}"
    MESSAGES = ({"role": "user", "content": "hello"},)

    def test_are_in_every_conversation(self) -> None:
        plain = templated(self.TEMPLATE)
        quick = plain.with_template({"enable_thinking": False, "depth": 2})
        assert plain.chat_text(self.MESSAGES) == "long:hello"
        assert quick.chat_text(self.MESSAGES) == "short2:hello"
        assert quick.chat_text(self.MESSAGES, depth=3) == "short3:hello"
        assert quick.with_template(None).chat_text(self.MESSAGES) == "long:hello"
        assert quick.with_template({"depth": [1]}).template_variables == {"depth": [1]}
        assert plain.template_variables == {}
        assert quick.fingerprint == plain.fingerprint and quick.encode("x") == plain.encode("x")

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ("enable_thinking=false", "must be a mapping"),
            ([("enable_thinking", False)], "must be a mapping"),
            ({"enable thinking": 1}, "is not the name"),
            ({1: 2}, "must be a text"),
            ({"messages": []}, "messages is set by the library"),
            ({"tokenize": True}, "tokenize is set by the library"),
            ({"chat_template": "x"}, "chat_template is set by the library"),
            ({"depth": float("nan")}, "must hold JSON values"),
            ({"depth": {1, 2}}, "must hold JSON values"),
            ({"depth": b"x"}, "must be a text"),
            ({"depth": "\ud800"}, "lone surrogate"),
            ({"dept": 1}, "reads no variable dept"),
        ],
    )
    def test_that_are_none_are_refused(self, variables: Any, said: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            templated(self.TEMPLATE).with_template(variables)
        assert "\n" not in str(caught.value)
