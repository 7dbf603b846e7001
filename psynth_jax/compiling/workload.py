"""What to compile: a model, a slice and a mesh over it, a program, and how much it reads.

synthesize   one question's prompt, reading W branches: what the time to first token is made of
decode       one token of the answer, reading W branches and the row's own tokens
workers      one token of every worker, each reading the prompt that they share and its own tokens
train        one step on a batch of questions: W branches encoded, read by prompt and target, the adapter changed
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import pydantic
import yaml
from jax.sharding import Mesh

from psynth_jax.buckets import Buckets
from psynth_jax.config import Config, Count, DecoderConfig
from psynth_jax.engine.machine import buckets_of
from psynth_jax.errors import ConfigError, InputError
from psynth_jax.files import read_text
from psynth_jax.foreign import reading
from psynth_jax.presets import preset
from psynth_jax.sharding import BRANCH, DATA, FSDP, ROW_AXES, TENSOR, check_fits, make_mesh, shards
from psynth_jax.topology import Slice, tpu_slice

Program: TypeAlias = Literal["synthesize", "decode", "workers", "train"]


class Workload(Config):
    """A program to compile.

    mesh: axes as in "branch=2,tensor=8"; None: `default_axes`.  branch_tokens: of every branch.  prompt_tokens: of the
    synthesizer's prompt, for "workers" of the prompt that they share.  new_tokens: room for the answer, for "train" the
    target.  questions: of a batch of "train".  cache_dtype: of the pool; None is dtype.  rank: of the synthesizer's
    adapter, 0 for none.
    """

    topology: str
    model: str
    program: Program
    mesh: str | None = None
    branches: Count = 16
    branch_tokens: Count = 4096
    prompt_tokens: Count = 256
    new_tokens: Count = 128
    questions: Count = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    cache_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    rank: Annotated[int, pydantic.Field(ge=0)] = 16

    @functools.cached_property
    def config(self) -> DecoderConfig:
        """The model's config.  Raises `UserError` for an unknown model."""
        return preset(self.model).config

    @functools.cached_property
    def slice(self) -> Slice:
        """The slice.  Raises `UserError` for an unknown one."""
        return tpu_slice(self.topology)

    def make_mesh(self) -> Mesh:
        """Build the mesh over the slice's devices.  Raises `ConfigError` when it does not fit devices or model."""
        devices = self.slice.devices()
        axes = {FSDP: len(devices)} if self.program == "train" else default_axes(self.config, len(devices))
        mesh = make_mesh(self.mesh or axes, devices)
        check_fits(mesh, self.config.sizes)
        return mesh

    def check_window(self) -> None:
        """Raise `InputError` when the model has no positions for that much."""
        needed = self.branch_tokens + self.prompt_tokens + (self.new_tokens if self.program != "workers" else 0)
        positions = self.config.max_positions
        if needed > positions:
            raise InputError(
                f"{self.model} has {positions:,} positions, and this takes {needed:,}: branch, "
                "prompt and answer; lower branch_tokens or prompt_tokens"
            )

    def calls(self, mesh: Mesh) -> list[tuple[int, int]]:
        """Return (rows, tokens) of the calls of the step that the scheduler makes on an accelerator.

        The chunks of a prompt; one token of an answer; one token of all workers, in as many calls as that takes.
        """
        buckets = buckets_of("tpu")
        if self.program == "synthesize":
            return _chunks(self.prompt_tokens, dataclasses.replace(buckets, data=mesh.shape[DATA]))
        if self.program == "decode":
            return [(dataclasses.replace(buckets, data=mesh.shape[DATA]).rows_of(1), 1)]
        if self.program == "workers":
            return _worker_calls(self.branches, dataclasses.replace(buckets, data=shards(mesh, ROW_AXES)), mesh)
        return [(self.questions, self.prompt_tokens + self.new_tokens)]


def _chunks(tokens: int, buckets: Buckets) -> list[tuple[int, int]]:
    """Return (rows, tokens) of the calls that read a prompt."""
    calls = []
    while tokens > 0:
        call = buckets.chunk_of([tokens])
        calls.append(call)
        tokens -= call[1]
    return calls


def _worker_calls(workers: int, buckets: Buckets, mesh: Mesh) -> list[tuple[int, int]]:
    """Return (rows, tokens) of the calls that write a token for every worker of a question.

    They lie on the branch blocks of one part of `data`; the rows of the other parts stay empty.
    """
    calls, on_a_block = [], -(-workers // mesh.shape[BRANCH])
    while on_a_block > 0:
        rows = buckets.rows_of(on_a_block * mesh.shape[BRANCH])
        calls.append((rows, 1))
        on_a_block -= rows // buckets.data
    return calls


def default_axes(config: DecoderConfig, devices: int) -> dict[str, int]:
    """Cut heads as far as they go, since that also cuts the weights; what is left of the devices takes branches."""
    tensor = math.gcd(devices, config.heads, config.kv_heads, config.experts or config.mlp_width)
    return {BRANCH: devices // tensor, TENSOR: tensor}


def workload(values: Mapping[str, Any]) -> Workload:
    """Build a workload from names and values.  Raises `ConfigError` naming every one that is wrong."""
    return Workload.parse(values)


def read_matrix(path: Path) -> list[Workload]:
    """Read a YAML list of workloads, each a mapping with the fields of `Workload`.

    Raises `ConfigError` for a file that cannot be read or is no such list, and for a wrong entry, with its number.
    """
    text = read_text(path, ConfigError)
    with reading(path, "yaml", ConfigError):
        entries = yaml.safe_load(text)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path} must be a list of workloads, each with topology, model and program")
    workloads = []
    for number, entry in enumerate(entries, start=1):
        try:
            workloads.append(workload(entry))
        except ConfigError as error:
            raise ConfigError(f"{path}, entry {number}: {error}") from None
    return workloads
