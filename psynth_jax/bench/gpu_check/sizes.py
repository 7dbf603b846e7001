"""What the GPU check measures, for a GPU and in miniature."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from psynth_jax.bench.question import Question, Writing
from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.ops.branch_attention.cases import Case
from psynth_jax.presets import preset

MINIATURE_MODEL = DecoderConfig(
    family="qwen3",
    vocab_size=211,
    width=48,
    layers=2,
    heads=6,
    kv_heads=2,
    head_width=32,
    mlp_width=64,
    norm_eps=1e-6,
    rope=PlainRope(theta=1e6),
    qk_norm=True,
    tied_head=False,
    max_positions=4096,
)


@dataclasses.dataclass(frozen=True)
class KernelCheck:
    """A case, the dtypes of queries and caches, and whether the backward pass is checked too."""

    case: Case
    dtype: str
    cache_dtype: str
    backward: bool


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """A case that is timed."""

    case: Case
    dtype: str
    cache_dtype: str
    implementation: str


@dataclasses.dataclass(frozen=True)
class LargeCache:
    """A cache `[L, 1, K, S, H]`: its last `tokens` slots are written, and read by some queries."""

    dtype: str
    layers: int
    heads: int
    kv_heads: int
    slots: int
    width: int
    tokens: int = 256
    queries: int = 16

    @property
    def elements(self) -> int:
        """Return the elements of its keys."""
        return self.layers * self.kv_heads * self.slots * self.width


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A model's shape, and what `psynth bench train` is asked for."""

    model: DecoderConfig
    name: str
    examples: int
    branches: int
    branch_tokens: int
    prompt_tokens: int
    target_tokens: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """All of it.

    questions: with how many measured runs of the text route.  part_seconds: what a part may take.
    piece_seconds: the time after which a piece begins nothing new, for the sake of the others.
    """

    model: DecoderConfig
    name: str
    dtype: str
    kernels: tuple[KernelCheck, ...]
    large_caches: tuple[LargeCache, ...]
    kernel_times: tuple[KernelTime, ...]
    questions: tuple[tuple[Question, int], ...]
    writing: Writing
    train: TrainStep
    part_seconds: float
    piece_seconds: Mapping[str, float]


def full() -> Sizes:
    """Return what is measured on a GPU."""
    kernels, times = [], []
    for model, dtype, cache_dtype in (
        ("qwen3-14b", "float32", "float32"),
        ("qwen3-14b", "bfloat16", "bfloat16"),
        ("qwen3-14b", "float32", "int8"),
        ("qwen3-14b", "bfloat16", "int8"),
        ("smollm2-135m", "float32", "float32"),
        ("smollm2-135m", "bfloat16", "bfloat16"),
        ("smollm2-135m", "bfloat16", "int8"),
    ):
        reading = Case(model, 1, 4, 700, own=37, rows=2)
        kernels.append(KernelCheck(reading, dtype, cache_dtype, backward=False))
        training = Case(model, 150, 3, 300, own=37, rows=2)
        kernels.append(KernelCheck(training, dtype, cache_dtype, backward=True))
    for implementation in ("auto", "xla"):
        for tokens, branches, branch_tokens, cache_dtype in (
            (1, 8, 4096, "bfloat16"),
            (1, 8, 4096, "int8"),
            (256, 8, 4096, "bfloat16"),
            (1, 16, 8192, "bfloat16"),
        ):
            case = Case("qwen3-8b", tokens, branches, branch_tokens, layers=1)
            times.append(KernelTime(case, "bfloat16", cache_dtype, implementation))
    # Triton's offsets change from 32 to 64 bits at 4 GiB: 2^31 elements of bfloat16, 2^32 of int8.
    large = (
        LargeCache("bfloat16", layers=40, heads=40, kv_heads=8, slots=53_248, width=128),
        LargeCache("int8", layers=40, heads=40, kv_heads=8, slots=105_472, width=128),
    )
    smollm2 = preset("smollm2-135m").config
    return Sizes(
        model=preset("qwen3-14b").config,
        name="qwen3-14b",
        dtype="bfloat16",
        kernels=tuple(kernels),
        large_caches=large,
        kernel_times=tuple(times),
        questions=((Question(8, 1024, 256), 3), (Question(16, 2048, 256), 1)),
        writing=Writing(rows=8, prompt_tokens=64, new_tokens=64),
        train=TrainStep(smollm2, "smollm2-135m", 12, 10, 192, 128, 16),
        part_seconds=145.0,
        piece_seconds={"kernels": 55.0, "large_cache": 40.0, "ours": 80.0, "torch": 50.0},
    )


def miniature() -> Sizes:
    """Return the same in small, for a CPU: every code path, and figures that mean nothing."""
    reading, training = Case("smollm2-135m", 1, 2, 20, own=3), Case("smollm2-135m", 5, 2, 20, own=3)
    times = Case("smollm2-135m", 1, 2, 20)
    large = LargeCache("int8", 2, heads=4, kv_heads=2, slots=96, width=32, tokens=16, queries=3)
    return Sizes(
        model=MINIATURE_MODEL,
        name="miniature",
        dtype="bfloat16",
        kernels=(
            KernelCheck(reading, "bfloat16", "int8", backward=False),
            KernelCheck(training, "float32", "float32", backward=True),
        ),
        large_caches=(large,),
        kernel_times=(KernelTime(times, "float32", "float32", "auto"),),
        questions=((Question(2, 12, 6), 1), (Question(3, 20, 6), 1)),
        writing=Writing(rows=3, prompt_tokens=5, new_tokens=4),
        train=TrainStep(MINIATURE_MODEL, "miniature", 2, 2, 12, 6, 5),
        part_seconds=600.0,
        piece_seconds={},
    )
