"""Text <-> token ids, chat templates, end tokens, and text that streams out token by token.

Wraps a transformers fast tokenizer; transformers and tokenizers are imported when a tokenizer is made, never before.
Knows no model and no file format: `from_gguf` takes the metadata, not the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import CheckpointError, InputError, UnsupportedModelError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

# What transformers says when it is imported without torch, which nothing here needs; its other messages stay.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in str(record.msg))

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

# Split patterns of published byte-level vocabularies, by the name GGUF has for them.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {"llama-bpe": _LLAMA3_SPLIT, "llama3": _LLAMA3_SPLIT, "llama-v3": _LLAMA3_SPLIT, "qwen2": _QWEN2_SPLIT}
_GPT2_SPLIT = ("gpt-2", "default")
_SMOLLM_SPLIT = ("smollm",)

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
_END_TOKENS = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"})


class Tokenizer:
    """A tokenizer as the pipeline needs it: no token is ever added that the text does not spell."""

    def __init__(self, backend: PreTrainedTokenizerFast, end_tokens: Iterable[int] = ()):
        """Wrap a fast transformers tokenizer; `end_tokens` are the model's, to which the tokenizer's own is added.

        Raises `UnsupportedModelError` for a tokenizer without a fast (Rust) backend.
        """
        fast = getattr(backend, "backend_tokenizer", None)
        if fast is None:
            raise UnsupportedModelError(f"{type(backend).__name__} is not a fast tokenizer; a tokenizer.json is needed")
        # A tokenizer.json may carry the settings of a training run: they would cut and fill up every text.
        fast.no_truncation()
        fast.no_padding()
        self.backend = backend
        self._fast: tokenizers.Tokenizer = fast
        own = [] if backend.eos_token_id is None else [backend.eos_token_id]
        self.stop_ids: frozenset[int] = frozenset(end_tokens) | frozenset(own)

    @classmethod
    def from_directory(cls, directory: str | Path, end_tokens: Iterable[int] = ()) -> Tokenizer | None:
        """Load the tokenizer of a Hugging Face model directory; None when there is none.

        Raises `CheckpointError` for tokenizer files that cannot be read.
        """
        if not any((Path(directory) / name).is_file() for name in _FILES):
            return None
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the tokenizer in {directory} cannot be loaded: {_one_line(error)}") from None
        return cls(backend, end_tokens)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokenizer that the `tokenizer.*` metadata of a GGUF file describe.

        End tokens are those that the metadata name, and the control tokens that are called like one.
        Raises `UnsupportedModelError` for vocabularies other than byte-level BPE with a known split.
        """
        from transformers import PreTrainedTokenizerFast

        tokens, types = _gguf_vocabulary(metadata)
        roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in roles.items()}
        backend = PreTrainedTokenizerFast(
            tokenizer_object=_gguf_byte_level_bpe(metadata, tokens, types),
            clean_up_tokenization_spaces=False,
            chat_template=metadata.get("tokenizer.chat_template"),
            **{role: tokens[index] for role, index in ids.items() if index is not None and index < len(tokens)},
        )
        named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        called = (i for i, token in enumerate(tokens) if types[i] == _CONTROL and token in _END_TOKENS)
        return cls(backend, {*(index for index in named if index is not None), *called})

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """Build a tokenizer whose tokens are the 256 bytes and the two marks of its chat template."""
        from tokenizers.pre_tokenizers import ByteLevel

        tokens = [*sorted(ByteLevel.alphabet()), "<|im_start|>", "<|im_end|>"]
        return cls.from_gguf(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [1] * 256 + [_CONTROL] * 2,
                "tokenizer.ggml.merges": [],
                "tokenizer.ggml.eos_token_id": len(tokens) - 1,
                "tokenizer.chat_template": _CHATML,
            }
        )

    @property
    def end_id(self) -> int | None:
        """The token that ends a turn of the model: what its tokenizer names as its own end token."""
        return self.backend.eos_token_id

    @property
    def size(self) -> int:
        """One more than the largest id; a model's embedding may be padded to more."""
        return max(self.backend.get_vocab().values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text or a conversation has: the tokenizer and its chat template."""
        content = json.dumps([self._fast.to_str(), self.backend.chat_template], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Tokenise text; no token is added, and special tokens that the text spells out are recognised."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are left out."""
        return self._fast.decode(list(ids), skip_special_tokens=True)

    def chat_text(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> str:
        """Render messages `[{"role": ..., "content": ...}, ...]` with the model's chat template.

        Args:
          messages: the conversation.
          add_generation_prompt: end with the header of the assistant's turn.
          variables: what else the template reads, such as `enable_thinking=False`.

        Raises:
          InputError: the tokenizer has no chat template, a message lacks its role or content, or the template refuses them.
        """
        if not self.backend.chat_template:
            raise InputError("this model's tokenizer has no chat template; give text or token ids instead of chat messages")
        for message in messages:
            if not _is_message(message):
                raise InputError(f'a chat message must be {{"role": ..., "content": ...}}, not {message!r}')
        from jinja2 import TemplateError

        conversation = [dict(message) for message in messages]
        try:
            return str(
                self.backend.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
                )
            )
        except (TemplateError, TypeError) as error:
            raise InputError(f"the chat template does not accept these messages: {_one_line(error)}") from None

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> list[int]:
        """Render messages and tokenise the text, adding nothing.  Arguments and errors as for `chat_text`."""
        return self.encode(self.chat_text(messages, add_generation_prompt, **variables))


class TextStream:
    """Turns tokens into text as they come; the pieces, put together, are the text of all tokens.

    A character may be spread over several tokens, so what is not yet certain is held back:

        tokens   | a b | 0xF0 0x9F | 0x99 | 0x82 c |
        pieces   | ab  |           |      | 🙂c    |
    """

    _UNFINISHED = "\ufffd"  # what an incomplete character decodes to
    _LONGEST = 3  # bytes of a character that can be there without its last one

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens just before, whose text is out; some decoders drop a text's first space
        self._context_text = ""
        self._pending: list[int] = []
        self._sent = 0  # characters of the pending tokens' text that are out

    def push(self, token: int) -> str:
        """Take the next token and return the text that has become certain, often one piece, sometimes none."""
        self._pending.append(token)
        text = self._pending_text()
        if text is None:
            return ""
        held = min(len(text) - len(text.rstrip(self._UNFINISHED)), self._LONGEST)
        piece = text[self._sent : len(text) - held]
        self._sent += len(piece)
        if held == 0:
            if text:
                self._context, self._context_text = self._pending, self._tokenizer.decode(self._pending)
            self._pending, self._sent = [], 0
        return piece

    def finish(self) -> str:
        """Return what was held back; incomplete characters come as U+FFFD, as in `Tokenizer.decode`."""
        text = self._pending_text() or ""
        piece = text[self._sent :]
        self._pending, self._sent = [], 0
        return piece

    def _pending_text(self) -> str | None:
        """Return the text of the pending tokens after the context; None while their bytes change the context's text."""
        text = self._tokenizer.decode([*self._context, *self._pending])
        return text[len(self._context_text) :] if text.startswith(self._context_text) else None


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value and bool({"content", "tool_calls"} & set(value))


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _gguf_vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Return the tokens and their types.  Raises for vocabularies that are not byte-level BPE."""
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedModelError(f"the GGUF tokenizer {model!r} is not supported; gpt2 (byte-level BPE) is")
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        if metadata.get(key) is None:
            raise CheckpointError(f"the GGUF file has no metadata {key}")
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"the GGUF file has {len(tokens)} tokens and {len(types)} token types")
    return tokens, types


def _gguf_byte_level_bpe(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    split = metadata.get("tokenizer.ggml.pre", "default")
    pre_tokenizer = _pre_tokenizer(split)
    # Padding of the embedding has names, such as [PAD151700], that no text may mean.
    vocabulary = {token: index for index, token in enumerate(tokens) if types[index] != _UNUSED}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    unknown = [merge for merge in merges if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys()]
    if unknown:
        raise CheckpointError(f"{len(unknown)} merges of the GGUF file do not fit its tokens, the first is {unknown[0]}")
    # Llama 3's vocabulary has words that no merges lead to.
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=_SPLITS.get(split) == _LLAMA3_SPLIT)
    tokenizer = Tokenizer(model)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        named = [token for index, token in enumerate(tokens) if types[index] == kind]
        added = [AddedToken(token, normalized=False, special=special) for token in named]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def _pre_tokenizer(split: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """Cut text the way that the merges were learned."""
    from tokenizers import Regex, pre_tokenizers

    if split in _SPLITS:
        words = pre_tokenizers.Split(Regex(_SPLITS[split]), behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split in _SMOLLM_SPLIT:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if split in _GPT2_SPLIT:
        return gpt2
    known = ", ".join([*_SPLITS, *_SMOLLM_SPLIT, *_GPT2_SPLIT])
    raise UnsupportedModelError(f"the GGUF pre-tokenizer {split!r} is not supported; supported are {known}")
