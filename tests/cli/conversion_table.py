"""What becomes what, as the Markdown table that README and docs show."""

from __future__ import annotations

from typing import get_args

from psynth_jax.convert.convert import Format, _refusal

# What a source can be, and whether that is an adapter.
SOURCES = {
    "model: Hugging Face directory, hub id": False,
    "model: GGUF file": False,
    "model: ours (Orbax)": False,
    "adapter: ours": True,
    "adapter: LoRA of PEFT": True,
    "adapter: published release": True,
}
RESULTS: dict[tuple[Format, bool], str] = {
    ("psynth", False): "Orbax checkpoint",
    ("psynth", True): "adapter directory",
    ("hf", False): "safetensors, config, tokenizer",
    ("hf", True): "merged model, with `--merge`",
    ("peft", True): "`cache_mapper.pt`, `judger_lora/`, card",
}


def table() -> str:
    """Return the table; a cell is empty where the code refuses."""
    formats: tuple[Format, ...] = get_args(Format)
    rows = [["from", *(f"`--to {to}`" for to in formats)], ["---"] * (1 + len(formats))]
    for source, adapter in SOURCES.items():
        cells = []
        for to in formats:
            can = _refusal(adapter, to, merge=adapter and to == "hf") is None
            cells.append(RESULTS[to, adapter] if can else "")
        rows.append([source, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
