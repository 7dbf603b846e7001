"""What a training step must compute, counted by hand, and what a device could: together the model FLOP/s utilisation.

    branches   2 P a token                  P: parameters of the layers' matrices; the base runs forwards only
    student    2 P forwards, 2 P backwards  no gradient of a frozen weight is computed; 6 A for A parameters of the adapter
    teacher    2 P a token
    attention  4 L N H a pair of query and key, forwards; twice that backwards
    head       2 V D a target, forwards, backwards and for the teacher

What is computed anew to save memory, and padding, is not counted: it is no use to anyone.
"""

from __future__ import annotations

import jax

from psynth_jax.config import DecoderConfig
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import numbers_per_token
from psynth_jax.topology import CHIPS
from psynth_jax.training.batch import Counts

# Dense bfloat16 FLOP/s by a part of what JAX calls the device; of vendors' data sheets.
PEAKS = {
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
}


def step_flops(config: DecoderConfig, lora: Lora | None, counts: Counts) -> int:
    """Return the floating-point operations of a step that holds these tokens."""
    dense = numbers_per_token(config)
    adapter = 0 if lora is None else sum(x.size for x in (*lora.down.values(), *lora.up.values()))
    pair = 4 * config.layers * config.heads * config.head_width
    head = 2 * config.vocab_size * config.width
    student = counts.prompt_tokens + counts.target_tokens
    return (
        2 * dense * (counts.branch_tokens + 2 * student + counts.teacher_tokens)
        + 6 * adapter * student
        + pair * (counts.branch_pairs + 3 * counts.student_pairs + counts.teacher_pairs)
        + head * counts.target_tokens * (3 if counts.teacher_tokens else 2)
    )


def peak_flops(device: jax.Device) -> float | None:
    """Return a device's dense bfloat16 FLOP/s; None for one that is not known, such as a CPU."""
    kind = device.device_kind
    return next((flops for name, flops in PEAKS.items() if name in kind), None)
