"""The tokenizer that the `tokenizer.*` metadata of a GGUF file describe, built with the tokenizers library.

    tokenizer.ggml.model   "gpt2": byte-level BPE, whose merges are in the file
                           "llama": SentencePiece's BPE, whose merges follow from the tokens and their scores

transformers builds the same from the same file, where torch is installed; ids are compared in the tests.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import CheckpointError, UnsupportedModelError, UserError
from psynth_jax.foreign import reason
from psynth_jax.gguf_metadata import Metadata

if TYPE_CHECKING:
    import tokenizers

# Split patterns of published byte-level vocabularies, by the name GGUF has for them.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {"llama-bpe": _LLAMA3_SPLIT, "llama3": _LLAMA3_SPLIT, "llama-v3": _LLAMA3_SPLIT, "qwen2": _QWEN2_SPLIT}
_GPT2_SPLIT = ("gpt-2", "default")
_SMOLLM_SPLIT = ("smollm",)

_MODEL, _TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"
_TYPES, _SCORES, _MERGES = "tokenizer.ggml.token_type", "tokenizer.ggml.scores", "tokenizer.ggml.merges"
_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
_ARCHITECTURE = "general.architecture"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token_type; 0 is undefined
_SPACE = "\u2581"  # how SentencePiece spells a space
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def check_vocabulary(metadata: Metadata) -> tuple[list[str], list[int]]:
    """Return the tokens and their types.

    Raises `UnsupportedModelError` for other models than the two above, and `CheckpointError` for metadata that are missing,
    of the wrong type, or do not fit each other.
    """
    model = metadata.text(_MODEL)
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"the GGUF tokenizer {model!r} is not supported; gpt2 (byte-level BPE) and llama (SentencePiece's BPE) are"
        )
    tokens = metadata.texts(_TOKENS)
    if not tokens:
        raise metadata.wrong(_TOKENS, "an array of at least one text")
    types = metadata.counts(_TYPES, [NORMAL] * len(tokens), most=BYTE)
    if len(types) != len(tokens):
        raise CheckpointError(f"{metadata.where} has {len(tokens)} tokens and {len(types)} token types")
    return tokens, types


def token_id(metadata: Metadata, role: str, tokens: Sequence[str]) -> int | None:
    """Return the id of "bos", "eos", "eot", "eom", "unknown" or "padding"; None where the file names none."""
    return metadata.count(f"tokenizer.ggml.{role}_token_id", None, least=0, most=len(tokens) - 1)


def adds(metadata: Metadata, role: str, token: str | None) -> bool:
    """Whether a SentencePiece text gets the "bos" or "eos" token; bos, where the file is silent.

    Raises `CheckpointError` for a token that transformers cannot put there.
    """
    if not metadata.flag(f"tokenizer.ggml.add_{role}_token", role == "bos") or token is None:
        return False
    # transformers spells it in a template in which a space ends a token, ":" begins a number and "$A" is the text.
    if not token or set(token) & set(":$") or token.split() != [token]:
        raise metadata.wrong(f"tokenizer.ggml.{role}_token_id", "a token without spaces, ':' and '$'")
    return True


@contextlib.contextmanager
def building(metadata: Metadata) -> Iterator[None]:
    """Turn what the tokenizers library raises inside the block into a `CheckpointError`.

    It raises plain `Exception` for vocabularies that it does not take, and its panics are not even that.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{metadata.where}: the tokenizer cannot be built: {reason(error)}") from None


def build(metadata: Metadata) -> tokenizers.Tokenizer:
    """Build the tokenizer.

    Raises `UnsupportedModelError` for another model or an unknown split, and `CheckpointError` for metadata that are
    missing, of the wrong type, or do not fit each other.
    """
    tokens, types = check_vocabulary(metadata)
    if metadata.text(_MODEL) == "llama":
        tokenizer, tokens = _sentencepiece(metadata, tokens)
    else:
        tokenizer = _byte_level_bpe(metadata, tokens, types)
    _add_whole_tokens(tokenizer, tokens, types)
    return tokenizer


def _add_whole_tokens(tokenizer: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Mark the tokens that text is cut at, before anything is merged: control tokens, and those of users."""
    from tokenizers import AddedToken

    added: dict[int, list[Any]] = {CONTROL: [], USER_DEFINED: []}
    for token, kind in zip(tokens, types, strict=True):
        if kind in added and token:
            added[kind].append(AddedToken(token, normalized=False, special=kind == CONTROL))
    tokenizer.add_special_tokens(added[CONTROL])
    tokenizer.add_tokens(added[USER_DEFINED])


# ---------------------------------------------------------------------------------------------------- byte-level BPE


def _byte_level_bpe(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    from tokenizers import decoders, normalizers

    split = metadata.text("tokenizer.ggml.pre", "default")
    pre_tokenizer = _pre_tokenizer(split)
    # Padding of the embedding has names, such as [PAD151700], that no text may mean.
    vocabulary = {token: index for index, token in enumerate(tokens) if types[index] != UNUSED}
    # Llama 3's vocabulary has words that no merges lead to.
    ignore_merges = _SPLITS.get(split) == _LLAMA3_SPLIT
    tokenizer = _bpe(vocabulary, _stored_merges(metadata, vocabulary), ignore_merges=ignore_merges)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
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


# ----------------------------------------------------------------------------------------------------- SentencePiece


def _sentencepiece(metadata: Metadata, tokens: list[str]) -> tuple[tokenizers.Tokenizer, list[str]]:
    """Build SentencePiece's BPE; also return the tokens as text is cut at them."""
    from tokenizers import decoders, pre_tokenizers

    gemma = metadata.text(_ARCHITECTURE, "").startswith("gemma")
    whole = tokens
    if gemma:
        # Gemma's tokens of several spaces are stored as spaces.  They are merged like all others, not cut out.
        blank = {token: _SPACE * len(token) for token in tokens if token and not token.strip(" ")}
        tokens = [blank.get(token, token) for token in tokens]
        whole = ["" if token in blank else token for token in whole]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = token_id(metadata, "unknown", tokens)
    absent = len(_BYTES - vocabulary.keys())
    if absent and unknown is None:
        raise CheckpointError(
            f"{metadata.where}: {absent} of the 256 tokens of bytes (<0x00> to <0xFF>) are missing, and there is no "
            "tokenizer.ggml.unknown_token_id, so that text would be lost"
        )
    if _MERGES in metadata:
        merges = _stored_merges(metadata, vocabulary)
    else:
        merges = list(_merges_by_score(tokens, vocabulary, _scores(metadata, tokens, gemma)))
    tokenizer = _bpe(
        vocabulary,
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else tokens[unknown],
    )
    prefix = metadata.flag(_SPACE_PREFIX, not gemma)
    scheme = "first" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer, whole


def _scores(metadata: Metadata, tokens: Sequence[str], gemma: bool) -> Sequence[float]:
    scores = metadata.numbers(_SCORES)
    if len(scores) != len(tokens):
        raise CheckpointError(f"{metadata.where} has {len(tokens)} tokens and {len(scores)} scores")
    # The scores of Gemma's many tokens of spaces, newlines and markup are all alike; its tokens lie in order of merges.
    return range(0, -len(tokens), -1) if gemma else scores


def _merges_by_score(
    tokens: Sequence[str], vocabulary: dict[str, int], scores: Sequence[float]
) -> Iterator[tuple[str, str]]:
    """Yield, best first, all pairs of tokens that make a token: by score of what they make, then the longer left one."""
    score_of = dict(zip(tokens, scores, strict=True))
    ordered = sorted(score_of, key=score_of.__getitem__, reverse=True)
    for _, group in itertools.groupby(ordered, key=score_of.__getitem__):
        alike, pairs = list(group), []
        for token in alike:
            for cut in range(len(token) - 1, 0, -1):
                left, right = token[:cut], token[cut:]
                if left in vocabulary and right in vocabulary:
                    pairs.append((left, right))
        if len(alike) > 1:
            pairs.sort(key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
        yield from pairs


# -------------------------------------------------------------------------------------------------------------- both


def _stored_merges(metadata: Metadata, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.texts(_MERGES)]
    unknown = [merge for merge in merges if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys()]
    if unknown:
        raise CheckpointError(f"{len(unknown)} merges of the GGUF file do not fit its tokens, the first is {unknown[0]}")
    return merges  # type: ignore[return-value]  # all have two parts


def _bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
