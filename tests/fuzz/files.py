"""Good files that the fixture does not have, written next to it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import gguf
import numpy as np
import pyarrow
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

from psynth_jax.convert.gguf import ARCHITECTURES
from psynth_jax.data.synthetic import synthetic_records
from psynth_jax.tokenizer import Tokenizer

ROLES = """- name: solver
  text: Work it out step by step.
- name: checker
  text: Look for what is wrong.
"""
MATRIX = """- {topology: v5e-16, model: qwen3-14b, program: synthesize, branches: 16, branch_tokens: 4096}
- {topology: v6e-8, model: qwen3-8b, program: decode, branches: 8, mesh: "branch=4,tensor=2", cache_dtype: int8}
"""
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test.jsonl
---

# Rows
"""
TRAIN = """workdir: run
model: hf
data: [{synthetic: 64}, {path: prepared/synthetic_join, weight: 0.5}]
evaluation: [{synthetic: 8}]
trainable: {mapper: true, mapper_hidden: 32, rank: 2, alpha: 4.0, targets: [q, k, v, o]}
optimizer: {learning_rate: 1e-2, schedule: cosine, warmup: 2, clip: 1.0}
batch: {tokens: 8192, examples: 4, shapes: 1}
train: {steps: 6, stop_at: 4, evaluate_every: 2}
checkpoint: {every: 2, keep: 1}
"""


def write_rows(tree: Path) -> None:
    """Write records in every format that rows are read from, and a folder with a data card."""
    rows = [record.to_json() for record in synthetic_records(count=6, seed=1)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tree / "rows.jsonl").write_text(lines)
    (tree / "rows.json").write_text(json.dumps(rows, indent=1))
    (tree / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "meta": None} for row in rows]), tree / "rows.parquet")
    shots = "Question: {0}?\\nAnswer: {0}.\\n\\n"
    prompt = "".join(shots.format(word) for word in ("one", "two", "three")) + "Question: four?\\nAnswer:"
    table = ["inputs\ttargets\t_task_name\t_template_type", *[f"{prompt}\tfour.\tcot\tfs_opt"] * 3]
    (tree / "rows.tsv").write_text("\n".join(table) + "\n")
    (tree / "set" / "data").mkdir(parents=True)
    (tree / "set" / "README.md").write_text(CARD)
    (tree / "set" / "data" / "train-0.jsonl").write_text(lines)
    (tree / "set" / "data" / "test.jsonl").write_text(lines)


def write_configs(tree: Path) -> None:
    """Write what is written by hand."""
    (tree / "roles.yaml").write_text(ROLES)
    (tree / "matrix.yaml").write_text(MATRIX)
    (tree / "train.yaml").write_text(TRAIN)


def write_sharded(tree: Path) -> None:
    """Write the model of the fixture in two files and an index."""
    tensors = load_file(tree / "hf" / "model.safetensors")
    folder = tree / "sharded"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tree / "hf" / name).read_bytes())
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_gguf(tree: Path) -> None:
    """Write a small Qwen3 with YaRN and a tokenizer of bytes, as llama.cpp's converter would."""
    random, family = np.random.default_rng(5), ARCHITECTURES["qwen3"]
    layers, heads, kv_heads, width, head_width, mlp = 2, 4, 2, 32, 16, 48
    tokenizer = Tokenizer.of_bytes()
    ids = tokenizer.backend.get_vocab()
    vocabulary = ["in", *sorted(ids, key=lambda token: ids[token])]
    writer = gguf.GGUFWriter(tree / "model.gguf", family)
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(128)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * 257 + [3] * 2)
    writer.add_token_merges(["i n"])
    writer.add_eos_token_id(len(vocabulary) - 1)
    writer.add_chat_template(tokenizer.backend.chat_template)
    shapes = {
        "token_embd.weight": (len(vocabulary), width),
        "output_norm.weight": (width,),
        "output.weight": (len(vocabulary), width),
    }
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (heads * head_width, width),
            f"blk.{layer}.attn_k.weight": (kv_heads * head_width, width),
            f"blk.{layer}.attn_v.weight": (kv_heads * head_width, width),
            f"blk.{layer}.attn_output.weight": (width, heads * head_width),
            f"blk.{layer}.attn_q_norm.weight": (head_width,),
            f"blk.{layer}.attn_k_norm.weight": (head_width,),
            f"blk.{layer}.ffn_gate.weight": (mlp, width),
            f"blk.{layer}.ffn_up.weight": (mlp, width),
            f"blk.{layer}.ffn_down.weight": (width, mlp),
        }
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 2 and shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
