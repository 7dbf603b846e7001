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
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import CheckpointError, InputError, UnsupportedModelError
from psynth_jax.template_variables import TemplateVariables, checked_variables
from psynth_jax.texts import checked_text, checked_texts, shown, surrogate

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

RENDER_SECONDS = 10.0  # a chat template that renders for longer does not end, as far as a caller is concerned

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

_LONGEST_LINE = 300  # characters of what another library says
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
_END_TOKENS = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"})


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
        if not any((Path(directory) / name).is_file() for name in _FILES):
            return None
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # The Rust library raises plain `Exception`, and panics that are no `Exception`.
        except BaseException as error:  # noqa: BLE001
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
        except BaseException as error:  # noqa: BLE001  see `from_directory`
            raise InputError(f"the tokenizer does not take the text {shown(text)}: {_one_line(error)}") from None

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
            raise InputError(f"the chat template does not accept these messages: {_one_line(error)}") from None
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


def _one_line(error: BaseException) -> str:
    """Return what an error says, on one line of bounded length."""
    said = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    if not said:
        return type(error).__name__
    return said if len(said) <= _LONGEST_LINE else f"{said[:_LONGEST_LINE]}..."


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
