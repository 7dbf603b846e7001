"""Text <-> token ids, chat templates, end tokens, and text that streams out token by token.

Wraps a transformers fast tokenizer; transformers and tokenizers are imported when a tokenizer is made, never before.
Knows no model and no file format: `from_gguf` takes the metadata, not the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import CheckpointError, InputError, UnsupportedModelError
from psynth_jax.gguf_metadata import Metadata
from psynth_jax.text import gguf_vocabulary

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_END_TOKENS = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>"})


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

        `general.architecture` among them, where it is known, says which kind of SentencePiece vocabulary it is.  End tokens
        are those that the metadata name, and the control tokens that are called like one.

        Raises:
          UnsupportedModelError: vocabularies other than byte-level BPE with a known split, and SentencePiece's BPE.
          CheckpointError: metadata that are missing, of the wrong type, or do not fit each other.
        """
        from transformers import PreTrainedTokenizerFast

        found = metadata if isinstance(metadata, Metadata) else Metadata(metadata)
        tokens, types = gguf_vocabulary.check_vocabulary(found)
        options: dict[str, Any] = {"chat_template": found.text("tokenizer.chat_template", None)}
        for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            index = gguf_vocabulary.token_id(found, name, tokens)
            if index is not None:
                options[f"{role}_token"] = tokens[index]
        if found.text("tokenizer.ggml.model") == "llama":
            # What transformers adds to a text by itself, once this is converted; here nothing is ever added.
            for role in ("bos", "eos"):
                options[f"add_{role}_token"] = gguf_vocabulary.adds(found, role, options.get(f"{role}_token"))
        with gguf_vocabulary.building(found):
            backend = PreTrainedTokenizerFast(
                tokenizer_object=gguf_vocabulary.build(found), clean_up_tokenization_spaces=False, **options
            )
        ends = set()
        for name in ("eos", "eot", "eom"):
            index = gguf_vocabulary.token_id(found, name, tokens)
            if index is not None:
                ends.add(index)
        called = (i for i, token in enumerate(tokens) if types[i] == gguf_vocabulary.CONTROL and token in _END_TOKENS)
        return cls(backend, {*ends, *called})

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
                "tokenizer.ggml.token_type": [gguf_vocabulary.NORMAL] * 256 + [gguf_vocabulary.CONTROL] * 2,
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
