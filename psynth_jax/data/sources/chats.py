"""WildChat, LMSYS-Chat, UltraChat and ShareGPT files: where each keeps its conversation, and which rows it lets through.

    wildchat    {"conversation_hash": "...", "conversation": [{"role", "content", "language", "turn_identifier", ...}, ...],
                 "language": "English", "redacted": false, "toxic": false, ...}
    lmsys_chat  {"conversation_id": "...", "conversation": [{"role", "content"}, ...], "language": "English",
                 "redacted": false, "openai_moderation": [{"flagged": false, ...}, ...], ...}
    ultrachat   {"prompt_id": "...", "messages": [{"role", "content"}, ...]}
    sharegpt    {"id": "...", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}

What a conversation becomes is in `dialogue.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from psynth_jax.config import Count
from psynth_jax.data.record import Record
from psynth_jax.data.sources.dialogue import DialogueOptions, Message, dialogue_record, read_messages
from psynth_jax.data.sources.fields import Row, UnfitError, digest, is_true, items, kept, text
from psynth_jax.data.sources.source import Source, dropping

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


class PublicChatOptions(DialogueOptions):
    """What a conversation of the public must have, besides its turns.

    english_only: its language is English.  message_languages: and so is that of every message which names one (only with
    english_only).  drop_redacted: nothing was blacked out in it.  drop_toxic: nothing in it was flagged by moderation.
    """

    english_only: bool = False
    message_languages: bool = True
    drop_redacted: bool = False
    drop_toxic: bool = False


class WildChatOptions(PublicChatOptions):
    """As for other conversations of the public, but one earlier exchange is enough."""

    min_branches: Count = 1


def _check_public(row: Row, messages: Sequence[Message], options: PublicChatOptions) -> None:
    rows: list[Mapping[str, object]] = [row, *(message.source for message in messages)]
    if options.english_only:
        if text(row.get("language"), "language").lower() != "english":
            raise UnfitError("the conversation is not English")
        spoken = [text(message.source.get("language"), "language").lower() for message in messages]
        if options.message_languages and any(language not in ("", "english") for language in spoken):
            raise UnfitError("a message is not English")
    if options.drop_redacted and any(is_true(part.get("redacted"), "redacted") for part in rows):
        raise UnfitError("something is redacted")
    if options.drop_toxic:
        verdicts = items(row.get("openai_moderation"), "openai_moderation")
        flagged = [is_true(verdict.get("flagged"), "flagged") for verdict in verdicts if isinstance(verdict, Mapping)]
        if any(flagged) or any(is_true(part.get("toxic"), "toxic") for part in rows):
            raise UnfitError("something is toxic")


def _wildchat(row: Row, options: WildChatOptions) -> Iterator[Record]:
    messages = read_messages(row.get("conversation"), "conversation")
    _check_public(row, messages, options)
    conversation = text(row.get("conversation_hash"), "conversation_hash")
    # Conversations that were gone on with share their hash; the identifier of the last turn tells them apart.
    turn = text(messages[-1].source.get("turn_identifier"), "turn_identifier") if messages else ""
    if not turn:
        turn = digest(*(message.content for message in messages))
    meta = kept(row, "model", "language", "redacted", "toxic", "timestamp")
    yield dialogue_record("wildchat", f"{conversation}_{turn}" if conversation else "", messages, options, meta)


def _lmsys_chat(row: Row, options: PublicChatOptions) -> Iterator[Record]:
    messages = read_messages(row.get("conversation"), "conversation")
    _check_public(row, messages, options)
    row_id = text(row.get("conversation_id"), "conversation_id")
    yield dialogue_record("lmsys_chat", row_id, messages, options, kept(row, "model", "language", "redacted"))


def _ultrachat(row: Row, options: DialogueOptions) -> Iterator[Record]:
    messages = read_messages(row.get("messages"), "messages")
    yield dialogue_record("ultrachat", text(row.get("prompt_id"), "prompt_id"), messages, options, {})


def _sharegpt(row: Row, options: DialogueOptions) -> Iterator[Record]:
    messages = read_messages(row.get("conversations"), "conversations", ("from", "value"), _SHAREGPT_ROLES)
    system = ""
    if messages and messages[0].role == "system":
        system = messages.pop(0).content
    yield dialogue_record("sharegpt", text(row.get("id"), "id"), messages, options, kept(row, "source"), system)


class ShareGPTOptions(DialogueOptions):
    """As for other conversations, but two turns and one earlier exchange are enough."""

    min_turns: Count = 2
    min_branches: Count = 1


WILDCHAT = Source(
    "wildchat",
    dropping(_wildchat),
    "Conversations of the public with ChatGPT (WildChat-1M)",
    WildChatOptions,
    hub_id="allenai/WildChat-1M",
    revision="7d6490e462285cf85d91eabea0f9a954fbddcd1f",
)
LMSYS_CHAT = Source(
    "lmsys_chat",
    dropping(_lmsys_chat),
    "Conversations of the public with 25 models (LMSYS-Chat-1M; gated)",
    PublicChatOptions,
    hub_id="lmsys/lmsys-chat-1m",
    revision="200748d9d3cddcc9d782887541057aca0b18c5da",
)
ULTRACHAT = Source(
    "ultrachat",
    dropping(_ultrachat),
    "Conversations written by a model (UltraChat 200k)",
    DialogueOptions,
    hub_id="HuggingFaceH4/ultrachat_200k",
    revision="8049631c405ae6576f93f445c6b8166f76f5505a",
    split="train_sft",
)
SHAREGPT = Source("sharegpt", dropping(_sharegpt), "Any conversations in the ShareGPT format", ShareGPTOptions)
