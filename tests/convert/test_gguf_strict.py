"""GGUF files whose metadata or bytes are wrong: one line that names file, key and what is right, and never anything else."""

from __future__ import annotations

import math
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="tokenizers are transformers'")

from psynth_jax.convert.gguf import GGUFFile, read_config
from psynth_jax.convert.load import open_model
from psynth_jax.errors import CheckpointError, UserError
from tests.convert import gguf_bytes as gb
from tests.convert.gguf_bytes import ARRAY, BOOL, F32, F64, I32, I64, STRING, U8, U32, U64, Typed

LLAMA = {
    "general.alignment": gb.number(32),
    **gb.model_metadata("llama"),
    **gb.sentencepiece_metadata(chat_template=gb.name("{{ messages[0].content }}")),
}
YARN = {
    **gb.model_metadata("qwen3"),
    "qwen3.rope.scaling.type": gb.name("yarn"),
    "qwen3.rope.scaling.factor": gb.real(4.0),
    "qwen3.rope.scaling.original_context_length": gb.number(64),
    "qwen3.rope.scaling.attn_factor": gb.real(1.0),
    "qwen3.rope.scaling.yarn_attn_factor": gb.real(1.0),
    "qwen3.rope.scaling.yarn_ext_factor": gb.real(1.0),
    "qwen3.rope.scaling.yarn_log_multiplier": gb.real(0.0),
    "qwen3.rope.scaling.yarn_beta_fast": gb.real(32.0),
    "qwen3.rope.scaling.yarn_beta_slow": gb.real(1.0),
    "qwen3.rope.dimension_count": gb.number(gb.SIZES["H"]),
    "qwen3.expert_count": gb.number(0),
    "qwen3.attention.sliding_window": gb.number(0),
    "qwen3.attention.causal": Typed(BOOL, True),
}
GEMMA = {
    **gb.model_metadata("gemma3"),
    "gemma3.rope.freq_base_swa": gb.real(10_000.0),
    "gemma3.rope.scaling.type": gb.name("linear"),
    "gemma3.rope.scaling.factor": gb.real(8.0),
    "gemma3.attention.sliding_window_pattern": gb.number(2),
    "gemma3.attn_logit_softcapping": gb.real(0.0),
    "gemma3.final_logit_softcapping": gb.real(0.0),
    **gb.sentencepiece_metadata(gemma=True),
    "tokenizer.ggml.eot_token_id": gb.number(266),
    "tokenizer.ggml.add_eos_token": Typed(BOOL, False),
}
MODELS = {"llama": LLAMA, "qwen3": YARN, "gemma3": GEMMA}
TENSORS = {family: gb.model_tensors(family) for family in MODELS}

NAN, INF = math.nan, math.inf
WRONG = [
    *(Typed(F32, value) for value in (NAN, INF, -INF, 0.0, -1.0, 0.5, 3e38, 1e-44)),
    *(Typed(F64, value) for value in (1e300, 4.0, NAN)),
    *(Typed(U32, value) for value in (0, 1, 7, 2**31, 2**32 - 1)),
    *(Typed(U64, value) for value in (2**63, 2**64 - 1)),
    *(Typed(I64, value) for value in (-1, -(2**63))),
    *(Typed(I32, value) for value in (-1, 5)),
    *(Typed(BOOL, value) for value in (True, False)),
    *(gb.name(value) for value in ("", "x", "yarn", "7", "\x00", "{{", "{% for %}", b"\xff\xfe", "é" * 5000)),
    *(Typed(ARRAY, [], kind) for kind in (U32, F32, STRING, ARRAY)),
    *(Typed(ARRAY, [1, 2, 3], kind) for kind in (U32, F32, BOOL, I64)),
    Typed(ARRAY, [0], U8),
    Typed(ARRAY, [-1] * 300, I32),
    Typed(ARRAY, [2**40] * 300, U64),
    Typed(ARRAY, [3] * 300, I32),
    Typed(ARRAY, [NAN] * 300, F32),
    gb.names(["a", "b"]),
    gb.names([""] * 300),
    gb.names(["a b"] * 300),
    Typed(ARRAY, ["a", b"\xff"], STRING),
]


def read_all(path: Path) -> None:
    """Read all that there is to read: config, tokenizer and every parameter; encode and decode."""
    stream = open_model(path)
    for stored in stream.parameters:
        stored.read()
    if stream.tokenizer is not None:
        stream.tokenizer.decode(stream.tokenizer.encode("the hat\n <eos>[X] é"))


def outcome(path: Path) -> str:
    """Return "" or the error's line; anything but a UserError passes through and fails the test."""
    try:
        read_all(path)
    except UserError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 6000
        return line
    return ""


@pytest.mark.parametrize("family", MODELS)
def test_the_models_are_right(family: str, tmp_path: Path) -> None:
    assert outcome(gb.write(tmp_path / "m.gguf", MODELS[family], TENSORS[family])) == ""


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_any_value_under_any_key(family: str, tmp_path: Path) -> None:
    """What is wrong is told by file; where the type is wrong, by key too."""
    path = tmp_path / "wrong.gguf"
    refused = 0
    for key in MODELS[family]:
        for value in WRONG:
            line = outcome(gb.write(path, {**MODELS[family], key: value}, TENSORS[family]))
            refused += bool(line)
    assert refused > 20 * len(MODELS[family])


@pytest.mark.parametrize("family", MODELS)
def test_any_key_missing_or_twice(family: str, tmp_path: Path) -> None:
    for key in MODELS[family]:
        without = {other: value for other, value in MODELS[family].items() if other != key}
        outcome(gb.write(tmp_path / "m.gguf", without, TENSORS[family]))
    first = gb.header(MODELS[family], {})
    twice = first[:16] + struct.pack("<Q", len(MODELS[family]) + 1) + first[24:]
    key, value = list(MODELS[family].items())[-1]
    (tmp_path / "m.gguf").write_bytes(twice + gb.text(key) + struct.pack("<I", value.kind) + value.bytes())
    assert "is there twice" in outcome(tmp_path / "m.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("way", ["bit", "byte", "word"])
def test_flipped_bytes_of_the_header(family: str, way: str, tmp_path: Path) -> None:
    rng = np.random.default_rng([7, len(way), len(family)])
    path = gb.write(tmp_path / "m.gguf", MODELS[family], TENSORS[family])
    whole, end = path.read_bytes(), len(gb.header(MODELS[family], TENSORS[family]))
    refused = 0
    for _ in range(250):
        damaged, at = bytearray(whole), int(rng.integers(end - 8))
        if way == "bit":
            damaged[at] ^= 1 << int(rng.integers(8))
        elif way == "byte":
            damaged[at] = int(rng.integers(256))
        else:
            damaged[at : at + 8] = rng.bytes(8) if rng.integers(2) else b"\xff" * 8
        path.write_bytes(damaged)
        refused += bool(outcome(path))
    assert refused > 50


@pytest.mark.parametrize("family", MODELS)
def test_cut_off_anywhere(family: str, tmp_path: Path) -> None:
    path = gb.write(tmp_path / "m.gguf", MODELS[family], TENSORS[family])
    whole, end = path.read_bytes(), len(gb.header(MODELS[family], TENSORS[family]))
    last = len(whole) - 32  # before the padding of the last tensor
    for length in [*range(0, end, 37), *range(end, last, 4001), last]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.gguf is not a complete GGUF file"):
            GGUFFile(path)


@pytest.mark.parametrize(
    ("family", "key", "value", "right"),
    [
        ("llama", "tokenizer.ggml.padding_token_id", Typed(ARRAY, [0], U32), "a whole number from 0 to 299"),
        ("llama", "tokenizer.ggml.bos_token_id", gb.number(300), "a whole number from 0 to 299, not 300"),
        ("llama", "tokenizer.ggml.eos_token_id", Typed(I32, -1), "a whole number from 0 to 299, not -1"),
        ("llama", "tokenizer.ggml.unknown_token_id", gb.number(2**32 - 1), "not 4294967295"),
        ("gemma3", "tokenizer.ggml.eot_token_id", Typed(BOOL, True), "not True"),
        ("llama", "tokenizer.ggml.model", gb.number(3), "a text, not 3"),
        ("llama", "tokenizer.ggml.tokens", Typed(ARRAY, [1, 2], U32), "an array of texts"),
        ("llama", "tokenizer.ggml.tokens", gb.names([]), "at least one text"),
        ("llama", "tokenizer.ggml.scores", gb.name("x"), "an array of finite numbers, not 'x'"),
        ("llama", "tokenizer.ggml.scores", Typed(ARRAY, [NAN] * 300, F32), "an array of finite numbers"),
        ("llama", "tokenizer.ggml.token_type", Typed(ARRAY, [9] * 300, I32), "from 0 to 6"),
        ("llama", "tokenizer.ggml.token_type", Typed(ARRAY, [True] * 300, BOOL), "an array of whole numbers"),
        ("llama", "tokenizer.ggml.add_space_prefix", gb.number(1), "true or false, not 1"),
        ("llama", "tokenizer.ggml.add_bos_token", gb.name("yes"), "true or false, not 'yes'"),
        ("llama", "tokenizer.chat_template", gb.names(["a"]), "a text, not an array of 1"),
        ("llama", "general.architecture", gb.number(1), "a text"),
        ("llama", "general.alignment", gb.number(24), "a power of 2, not 24"),
        ("llama", "llama.block_count", gb.number(2**31 - 1), "a whole number from 1 to 29"),
        ("llama", "llama.block_count", Typed(I32, -3), "not -3"),
        ("llama", "llama.context_length", Typed(U64, 2**63), "a whole number from 1 to 2147483647"),
        ("llama", "llama.context_length", Typed(BOOL, True), "not True"),
        ("llama", "llama.embedding_length", gb.real(24.0), "a whole number"),
        ("llama", "llama.attention.head_count", Typed(BOOL, True), "not True"),
        ("llama", "llama.attention.head_count_kv", gb.number(3), "a divisor of the 4 heads, not 3"),
        ("llama", "llama.attention.head_count_kv", Typed(ARRAY, [2, 2], U32), "one for each of 3 layers"),
        ("llama", "llama.attention.key_length", gb.number(7), "heads of an even width"),
        ("llama", "llama.attention.layer_norm_rms_epsilon", gb.real(NAN), "above 0, not nan"),
        ("llama", "llama.rope.freq_base", gb.real(INF), "above 0, not inf"),
        ("llama", "llama.rope.freq_base", gb.name("10000"), "above 0, not '10000'"),
        ("qwen3", "qwen3.rope.scaling.factor", gb.real(INF), "a finite number, not inf"),
        ("qwen3", "qwen3.rope.scaling.factor", gb.real(NAN), "a finite number, not nan"),
        ("qwen3", "qwen3.rope.scaling.factor", gb.name("4"), "a finite number, not '4'"),
        ("qwen3", "qwen3.rope.scaling.factor", gb.real(0.5), "at least 1"),
        ("qwen3", "qwen3.rope.scaling.factor", gb.real(3e38), "at most 2147483647 positions"),
        ("qwen3", "qwen3.rope.scaling.attn_factor", gb.name("x"), "above 0, not 'x'"),
        ("qwen3", "qwen3.rope.scaling.type", gb.real(1.0), "a text"),
        ("qwen3", "qwen3.rope.scaling.original_context_length", Typed(I32, -4), "not -4"),
        ("qwen3", "qwen3.rope.scaling.yarn_beta_fast", gb.real(-1.0), "above 0, not -1"),
        ("gemma3", "gemma3.attention.sliding_window", Typed(I32, -1), "a whole number from 0"),
        ("gemma3", "gemma3.attention.sliding_window_pattern", Typed(ARRAY, [True], BOOL), "for each of 3 layers"),
        ("gemma3", "gemma3.attention.sliding_window_pattern", gb.name("x"), "a whole number"),
        ("gemma3", "gemma3.rope.freq_base_swa", gb.real(0.0), "above 0, not 0"),
        ("gemma3", "gemma3.final_logit_softcapping", gb.name("x"), "a finite number"),
    ],
)
def test_file_key_and_what_is_right(family: str, key: str, value: Typed, right: str, tmp_path: Path) -> None:
    path = gb.write(tmp_path / "this.gguf", {**MODELS[family], key: value}, TENSORS[family])
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    line = str(caught.value)
    assert "this.gguf" in line
    assert key in line
    assert right in line


@pytest.mark.parametrize(
    ("family", "key"),
    [
        *(("llama", f"llama.{key}") for key in ("block_count", "context_length", "embedding_length")),
        *(("llama", f"tokenizer.ggml.{key}") for key in ("model", "tokens", "scores")),
        *(("gemma3", f"gemma3.{key}") for key in ("attention.sliding_window", "rope.freq_base")),
        ("llama", "general.architecture"),
    ],
)
def test_missing_key(family: str, key: str, tmp_path: Path) -> None:
    without = {other: value for other, value in MODELS[family].items() if other != key}
    with pytest.raises(CheckpointError, match=rf"m\.gguf has no metadata {re.escape(key)}"):
        read_all(gb.write(tmp_path / "m.gguf", without, TENSORS[family]))


class TestTextThatIsNotUtf8:
    @pytest.mark.parametrize("key", ["general.architecture", "tokenizer.chat_template", "general.name"])
    def test_value(self, key: str, tmp_path: Path) -> None:
        path = gb.write(tmp_path / "m.gguf", {**LLAMA, key: gb.name(b"caf\xe9")}, TENSORS["llama"])
        with pytest.raises(CheckpointError, match=rf"m\.gguf .*'{re.escape(key)}' is not UTF-8"):
            GGUFFile(path)

    def test_item_of_an_array(self, tmp_path: Path) -> None:
        tokens: list[Any] = ["a"] * 300
        tokens[7] = b"\xff"
        path = gb.write(tmp_path / "m.gguf", {**LLAMA, "tokenizer.ggml.tokens": gb.names(tokens)}, TENSORS["llama"])
        with pytest.raises(CheckpointError, match=r"item 7 of metadata 'tokenizer\.ggml\.tokens' is not UTF-8"):
            GGUFFile(path)


class TestLengths:
    """A length is compared with the file before anything is read or allocated: MemoryError would pass through."""

    HUGE = (2**31, 2**40, 2**62, 2**64 - 1)

    def refused(self, path: Path, after_counts: bytes, tensors: int = 0, metadata: int = 1) -> None:
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, metadata) + after_counts + bytes(200))
        with pytest.raises(CheckpointError, match="is not a complete GGUF file"):
            GGUFFile(path)

    @pytest.mark.parametrize("length", HUGE)
    def test_metadata(self, length: int, tmp_path: Path) -> None:
        path, key = tmp_path / "m.gguf", gb.text("key")
        self.refused(path, struct.pack("<Q", length))
        self.refused(path, key + struct.pack("<IQ", STRING, length))
        for items in (U8, U32, F32, U64, BOOL, STRING, ARRAY, 77):
            self.refused(path, key + struct.pack("<IIQ", ARRAY, items, length))
        self.refused(path, b"", metadata=length)
        self.refused(path, b"", tensors=length, metadata=0)

    @pytest.mark.parametrize("length", HUGE)
    def test_tensors(self, length: int, tmp_path: Path) -> None:
        path, name = tmp_path / "m.gguf", gb.text("token_embd.weight")
        for sizes in ([length], [32, length], [length] * 4):
            described = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, 0)
            self.refused(path, name + described, tensors=1, metadata=0)
        self.refused(path, name + struct.pack("<IQIQ", 1, 8, 0, length), tensors=1, metadata=0)
        self.refused(path, name + struct.pack("<I", length % 2**32), tensors=1, metadata=0)

    def test_arrays_of_arrays_of_arrays(self, tmp_path: Path) -> None:
        nested = gb.text("key") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 12
        self.refused(tmp_path / "m.gguf", nested)

    def test_big_endian_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64))
        with pytest.raises(CheckpointError, match="it is big-endian"):
            GGUFFile(tmp_path / "m.gguf")

    def test_tensors_that_overlap(self, tmp_path: Path) -> None:
        """One that begins elsewhere would be read as other numbers."""
        path = gb.write(tmp_path / "m.gguf", LLAMA, TENSORS["llama"])
        whole = bytearray(path.read_bytes())
        second = list(TENSORS["llama"])[1].encode()
        at = whole.index(second) + len(second) + 4 + 8 + 4
        whole[at : at + 8] = struct.pack("<Q", 64)
        path.write_bytes(whole)
        with pytest.raises(CheckpointError, match="begins at byte 64 of the data, expected"):
            GGUFFile(path)


@pytest.mark.parametrize("by", [1, 2, 9])
def test_a_count_of_tensors_that_is_too_small(by: int, tmp_path: Path) -> None:
    """The last one, the head, would be absent, and so the model tied; all others would begin within the header."""
    tensors = gb.model_tensors("llama", head=True)
    path = gb.write(tmp_path / "m.gguf", LLAMA, tensors)
    whole = bytearray(path.read_bytes())
    whole[8:16] = struct.pack("<Q", len(tensors) - by)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="bytes behind its last tensor belong to none"):
        open_model(path)


class TestSpecialFiles:
    def test_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.gguf")
        with pytest.raises(CheckpointError, match=r"x\.gguf is not a regular file"):
            GGUFFile(tmp_path / "x.gguf")
        with pytest.raises(UserError, match=r"x\.gguf is not a regular file"):
            open_model(tmp_path / "x.gguf")

    def test_fifo_among_the_parts(self, tmp_path: Path) -> None:
        paths = gb.write_split(tmp_path, LLAMA, TENSORS["llama"], 3)
        paths[1].unlink()
        os.mkfifo(paths[1])
        with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.gguf is not a regular file"):
            open_model(paths[0])

    def test_directory(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").mkdir()
        with pytest.raises(CheckpointError, match="cannot read"):
            GGUFFile(tmp_path / "x.gguf")


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    tensors = {**TENSORS["llama"], "token_embd.weight": TENSORS["llama"]["token_embd.weight"][:290]}
    with pytest.raises(CheckpointError, match=r"300 tokens, but token_embd\.weight has 290 rows"):
        open_model(gb.write(tmp_path / "m.gguf", LLAMA, tensors))


def test_an_array_that_agrees_is_one_number(tmp_path: Path) -> None:
    heads = {"llama.attention.head_count": Typed(ARRAY, [4, 4, 4], I32)}
    assert read_config(GGUFFile(gb.write(tmp_path / "m.gguf", {**LLAMA, **heads}, TENSORS["llama"]))).heads == 4
