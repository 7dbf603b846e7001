"""Options that several commands have, and the names that help lists.

No JAX is imported to know them: a test compares the names with the library's.
"""

from __future__ import annotations

from typing import Annotated

import typer

DTYPES = "float32, bfloat16 or float16"
CACHE_DTYPES = "float32, bfloat16, float16, int8"
POSITIONS = "exact or reference_live"
LAYERS = "auto, stacked, separate"
IMPLEMENTATIONS = "auto, xla, pallas_tpu, pallas_gpu, reference"
ATTENTION_SHAPES = (
    "smollm2-135m, qwen2.5-0.5b, llama-3.2-1b, qwen3-0.6b, llama-3.2-3b, qwen2.5-7b, qwen3-8b, qwen3-14b, qwen3-32b"
)
PRESETS = (
    "qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, qwen3-14b, qwen3-32b, qwen3-30b-a3b, qwen3-235b-a22b, llama-3.2-1b, "
    "llama-3.2-3b, llama-3.1-8b, qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b, qwen2.5-7b, gemma-3-270m, gemma-3-1b, "
    "smollm2-135m, smollm2-360m, smollm2-1.7b"
)
SOURCES = (
    "2wikimultihopqa, attempts, browsecomp, dta_tool, flan, flan_cot, hotpotqa, lmsys_chat, records, sharegpt, squad, "
    "synthetic, toucan_multi, toucan_single, ultrachat, wildchat"
)
METHODS = "text, text-lora, branches, gated, identity, question, wrong-branches, vote, best-worker, self, recompute:K"
BENCHMARKS = "aime24, aime25, gpqa, gsm8k, humaneval_plus, mbpp_plus, medqa"

ModelName = Annotated[str, typer.Option("--model", help="preset, model directory, .gguf file, or hub id")]
Dtype = Annotated[str, typer.Option(help=DTYPES)]
MeshAxes = Annotated[str | None, typer.Option("--mesh", help="devices to run on, as in branch=2,tensor=2; default: one")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
