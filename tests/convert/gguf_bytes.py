"""GGUF files written byte by byte, so that any type can be under any key; and small models of every architecture.

Knows the format and nothing of the package.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
SPACE = "\u2581"


@dataclasses.dataclass(frozen=True)
class Typed:
    """A value and its type; kind of items, for an array."""

    kind: int
    value: Any
    items: int | None = None

    def bytes(self) -> bytes:
        if self.kind == STRING:
            return text(self.value)
        if self.kind == ARRAY:
            assert self.items is not None
            head = struct.pack("<IQ", self.items, len(self.value))
            return head + b"".join(Typed(self.items, item).bytes() for item in self.value)
        return struct.pack("<" + FORMATS[self.kind], self.value)


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def number(value: int) -> Typed:
    return Typed(U32, value)


def real(value: float) -> Typed:
    return Typed(F32, value)


def name(value: str | bytes) -> Typed:
    return Typed(STRING, value)


def names(value: list[str]) -> Typed:
    return Typed(ARRAY, value, STRING)


def header(metadata: Mapping[str, Typed], tensors: Mapping[str, np.ndarray]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [text(key), struct.pack("<I", value.kind), value.bytes()]
    offset = 0
    for key, tensor in tensors.items():
        sizes = tensor.shape[::-1]
        parts += [text(key), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, offset)]
        offset += -(-tensor.nbytes // 32) * 32
    return b"".join(parts)


def data(tensors: Mapping[str, np.ndarray]) -> bytes:
    return b"".join(t.astype("<f4").tobytes() + bytes(-t.nbytes % 32) for t in tensors.values())


def write(path: Path, metadata: Mapping[str, Typed], tensors: Mapping[str, np.ndarray]) -> Path:
    first = header(metadata, tensors)
    path.write_bytes(first + bytes(-len(first) % 32) + data(tensors))
    return path


def write_split(
    folder: Path, metadata: Mapping[str, Typed], tensors: Mapping[str, np.ndarray], count: int, stem: str = "model"
) -> list[Path]:
    """Write what llama.cpp's gguf-split makes: all metadata in the first part, tensors dealt out in order."""
    every, paths = list(tensors), []
    for i in range(count):
        mine = every[i * len(every) // count : (i + 1) * len(every) // count]
        split = {
            "split.no": Typed(U16, i),
            "split.count": Typed(U16, count),
            "split.tensors.count": Typed(I32, len(every)),
        }
        path = folder / f"{stem}-{i + 1:05}-of-{count:05}.gguf"
        paths.append(write(path, {**(metadata if i == 0 else {}), **split}, {key: tensors[key] for key in mine}))
    return paths


# ---------------------------------------------------------------------------------------------------- small models

SIZES = {"V": 300, "D": 24, "L": 3, "N": 4, "K": 2, "H": 6, "F": 20}


def model_metadata(family: str, **changed: Typed | None) -> dict[str, Typed]:
    """Return the metadata of a small model; keys of `changed` lack the architecture and have __ for a dot."""
    values: dict[str, Typed | None] = {
        "context_length": number(256),
        "embedding_length": number(SIZES["D"]),
        "block_count": number(SIZES["L"]),
        "feed_forward_length": number(SIZES["F"]),
        "attention.head_count": number(SIZES["N"]),
        "attention.head_count_kv": number(SIZES["K"]),
        "attention.key_length": number(SIZES["H"]),
        "attention.value_length": number(SIZES["H"]),
        "attention.layer_norm_rms_epsilon": real(1e-6),
        "rope.freq_base": real(10_000.0),
    }
    if family == "gemma3":
        values["attention.sliding_window"] = number(96)
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    found = {f"{family}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": name(family), **found}


def model_tensors(family: str, seed: int = 0, biases: bool = False, head: bool = False) -> dict[str, np.ndarray]:
    """Draw the tensors of a small model; norms of gemma3 are 1 + weight, as they are of all others."""
    s = SIZES
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (s["V"], s["D"]), "output_norm.weight": (s["D"],)}
    for layer in range(s["L"]):
        block = {
            "attn_norm.weight": (s["D"],),
            "attn_q.weight": (s["N"] * s["H"], s["D"]),
            "attn_k.weight": (s["K"] * s["H"], s["D"]),
            "attn_v.weight": (s["K"] * s["H"], s["D"]),
            "attn_output.weight": (s["D"], s["N"] * s["H"]),
            "ffn_norm.weight": (s["D"],),
            "ffn_gate.weight": (s["F"], s["D"]),
            "ffn_up.weight": (s["F"], s["D"]),
            "ffn_down.weight": (s["D"], s["F"]),
        }
        if family in ("qwen3", "gemma3"):
            block |= {"attn_q_norm.weight": (s["H"],), "attn_k_norm.weight": (s["H"],)}
        if family == "gemma3":
            block |= {"post_attention_norm.weight": (s["D"],), "post_ffw_norm.weight": (s["D"],)}
        if biases or family == "qwen2":
            block |= {f"attn_{x}.bias": (s["N" if x == "q" else "K"] * s["H"],) for x in "qkv"}
        shapes |= {f"blk.{layer}.{key}": shape for key, shape in block.items()}
    if head:
        shapes["output.weight"] = (s["V"], s["D"])
    rng, tensors = np.random.default_rng(seed), {}
    for key, shape in shapes.items():
        noise = rng.standard_normal(shape)
        if key.endswith("norm.weight"):
            drawn = 1 + 0.3 * noise
        elif key.endswith("bias") or key == "token_embd.weight":
            drawn = 0.3 * noise
        else:
            drawn = 1.4 * noise / np.sqrt(shape[-1])
        tensors[key] = drawn.astype(np.float32)
    return tensors


def sentencepiece_metadata(gemma: bool = False, **changed: Typed | None) -> dict[str, Typed]:
    """Describe a vocabulary of 300 tokens: control, bytes, users' own, letters and words with scores."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>", "<pad>"]
    letters = [SPACE, *"etaoinhs", "é", "日"]
    words = ["he", f"{SPACE}t", f"{SPACE}the", "in", "an", "na", "th", "ha", "at", "hat", "that", f"{SPACE}that"]
    words += ["on", "es", "s\n"]
    users = ["\n", "\n\n", *(["  ", "   "] if gemma else ["[X]", "[Y]"]), "<table>"]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *users, *turns, *words, *letters]
    tokens += [f"<unused{i}>" for i in range(SIZES["V"] - len(tokens))]
    assert len(tokens) == SIZES["V"]
    kinds = dict.fromkeys([*control, *turns], 3) | dict.fromkeys(users, 4)
    kinds |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
    types = [kinds.get(token, 3 if token.startswith("<unused") else 1) for token in tokens]
    best = {word: -float(rank // 2) for rank, word in enumerate(words)}  # in twos: some scores are alike
    scores = [best.get(token, -50.0 if kind == 1 else 0.0) for token, kind in zip(tokens, types, strict=True)]
    ids = {"bos": 2, "eos": 1, "unknown": 3, "padding": 0} if gemma else {"bos": 1, "eos": 2, "unknown": 0, "padding": 3}
    values: dict[str, Typed | None] = {
        "ggml.model": name("llama"),
        "ggml.pre": name("default"),
        "ggml.tokens": names(tokens),
        "ggml.scores": Typed(ARRAY, scores, F32),
        "ggml.token_type": Typed(ARRAY, types, I32),
        **{f"ggml.{role}_token_id": number(index) for role, index in ids.items()},
        "ggml.add_bos_token": Typed(BOOL, True),
        "ggml.add_space_prefix": Typed(BOOL, not gemma),
    }
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    return {f"tokenizer.{key}": value for key, value in values.items() if value is not None}
