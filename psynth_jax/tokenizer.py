"""Text <-> token ids, chat templates, end tokens, and text that streams out token by token.

Wraps a transformers fast tokenizer; transformers and tokenizers are imported when a tokenizer is made, never before.
Knows no model and no file format: `from_gguf` takes the metadata, not the file.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import InputError, UnsupportedModelError, shown
from psynth_jax.foreign import reason
from psynth_jax.gguf_metadata import Metadata
from psynth_jax.template_variables import TemplateVariables, checked_variables
from psynth_jax.text import gguf_vocabulary
from psynth_jax.tokenizer_files import has_tokenizer, load_backend, tokenizer_class
from psynth_jax.unicode_text import checked_text, checked_texts, surrogate

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

# What transformers says when it is imported without torch, which nothing here needs; its other messages stay.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in str(record.msg))

RENDER_SECONDS = 10.0  # a chat template that renders for longer does not end, as far as a caller is concerned

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_END_TOKENS = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>"})


class Tokenizer:
    """A tokenizer as the pipeline needs it: no token is ever added that the text does not spell.

    template_variables: what its chat template reads besides messages, in every conversation; see `with_template`.
    Threads may share one.
    """

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
        self.template_variables: TemplateVariables = {}
        self._fast: tokenizers.Tokenizer = fast
        own = [] if backend.eos_token_id is None else [backend.eos_token_id]
        self.stop_ids: frozenset[int] = frozenset(end_tokens) | frozenset(own)

    @classmethod
    def from_directory(cls, directory: str | Path, end_tokens: Iterable[int] = ()) -> Tokenizer | None:
        """Load the tokenizer of a Hugging Face model directory; None when there is none.

        Raises `CheckpointError` for tokenizer files that cannot be read.
        """
        return cls(load_backend(directory), end_tokens) if has_tokenizer(directory) else None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokenizer that the `tokenizer.*` metadata of a GGUF file describe.

        `general.architecture` among them, where it is known, says which kind of SentencePiece vocabulary it is.  End tokens
        are those that the metadata name, and the control tokens that are called like one.

        Raises:
          UnsupportedModelError: vocabularies other than byte-level BPE with a known split, and SentencePiece's BPE.
          CheckpointError: metadata that are missing, of the wrong type, or do not fit each other.
        """
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
            backend = tokenizer_class("PreTrainedTokenizerFast")(
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
        """A hash of everything that decides which ids a text or a conversation has.

        That is the tokenizer, its chat templates, and the special tokens that they name.
        """
        return self.fingerprints[0]

    @functools.cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """`fingerprint`, and the one that version 0.1.0 noted, which does not cover special tokens of templates."""
        content: list[Any] = [self._fast.to_str(), self.backend.chat_template]
        spelled = json.dumps(self.backend.chat_template)
        named = {role: str(token) for role, token in self.backend.special_tokens_map.items() if role in spelled}
        digests = []
        for covered in ([*content, named] if named else content, content):
            digests.append(hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest())
        return tuple(dict.fromkeys(digests))

    def with_template(self, variables: TemplateVariables | None) -> Tokenizer:
        """Return this tokenizer, whose chat template is given these variables in every conversation.

        They take the place of those that it has; None or an empty mapping: of none.

        Raises:
          InputError: they are no mapping from names to JSON values, the library sets one itself, or the chat template
            reads no variable of that name.
        """
        checked = checked_variables(variables)
        if checked:
            written = "\n".join(self._templates().values())
            unread = [name for name in checked if not re.search(rf"\b{name}\b", written)]
            if unread:
                raise InputError(f"the chat template of this tokenizer reads no variable {', '.join(unread)}")
        changed = copy.copy(self)
        changed.template_variables = checked
        return changed

    def encode(self, text: str) -> list[int]:
        """Tokenise text; no token is added, and special tokens that the text spells out are recognised.

        Raises `InputError` for what is no text, for lone surrogates, and for what the tokenizer cannot take.
        """
        text = checked_text(text, "the text")
        try:
            return list(self._fast.encode(text, add_special_tokens=False).ids)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  Rust: plain `Exception`, and panics
            raise InputError(f"the tokenizer does not take the text {shown(text)}: {reason(error)}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are left out."""
        return self._fast.decode(list(ids), skip_special_tokens=True)

    def _templates(self) -> dict[str, str]:
        """Return the chat templates by name; a single one is called default."""
        found = self.backend.chat_template
        if isinstance(found, Mapping):
            return dict(found)
        return {"default": found} if found else {}

    def chat_text(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> str:
        """Render messages `[{"role": ..., "content": ...}, ...]` with the model's chat template.

        The template is code of whoever published the model.  It runs in transformers' sandbox, for `RENDER_SECONDS` at most.

        Args:
          messages: the conversation.
          add_generation_prompt: end with the header of the assistant's turn.
          variables: what else the template reads, such as `enable_thinking=False`, besides `template_variables`.

        Raises:
          InputError: the tokenizer has no chat template, or several and no default; a message lacks its role or content, or
            one is no Unicode text; the template refuses them, fails, does not end, or renders nothing.
        """
        templates = self._templates()
        if not templates:
            raise InputError("this model's tokenizer has no chat template; give text or token ids instead of chat messages")
        variables = {**self.template_variables, **checked_variables(variables)}
        if "default" not in templates and not ("tool_use" in templates and variables.get("tools") is not None):
            raise InputError(
                f"this model's tokenizer has several chat templates ({', '.join(sorted(map(str, templates)))}) and no "
                "default: call one of them default in its files, or give token ids instead of chat messages"
            )
        conversation = [_checked_message(message) for message in messages]
        try:
            with _at_most(RENDER_SECONDS):
                text = self.backend.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
                )
        except _TooLong:
            raise InputError(f"the chat template has not ended after {RENDER_SECONDS:g} s: its loops are too long") from None
        except Exception as error:  # noqa: BLE001  a template may raise anything
            raise InputError(f"the chat template does not accept these messages: {reason(error)}") from None
        text = str(text)
        if not text.strip():
            raise InputError("the chat template renders nothing for these messages")
        if surrogate(text) is not None:
            raise InputError("the chat template renders a lone surrogate, which is not a Unicode character")
        return text

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> list[int]:
        """Render messages and tokenise the text, adding nothing.  Arguments and errors as for `chat_text`."""
        return self.encode(self.chat_text(messages, add_generation_prompt, **variables))


class _TooLong(Exception):
    """A chat template renders for too long."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` from inside of a chat template's loops when its time is up.

    jinja2 compiles a template to Python code, so a trace of its lines, in this thread alone, is enough; code of the
    libraries is not traced.
    """
    deadline = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != "<template>":
            return None
        if time.monotonic() > deadline:
            raise _TooLong
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


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


def _checked_message(message: object) -> dict[str, Any]:
    """Return a copy of a chat message.

    Raises `InputError` when it has no role, neither content nor tool calls, or when a text in it is not Unicode.
    """
    if not isinstance(message, Mapping) or "role" not in message or not {"content", "tool_calls"} & set(message):
        raise InputError(f'a chat message must be {{"role": ..., "content": ...}}, not {shown(message)}')
    checked_text(message["role"], "the role of a chat message")
    content = message.get("content")
    if not isinstance(content, str | list | tuple) and not (content is None and message.get("tool_calls")):
        raise InputError(f"the content of a chat message must be a text, not {shown(content)}")
    checked_texts(message, "a chat message")
    return dict(message)
