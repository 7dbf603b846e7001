"""The GPU check in miniature, what it reports, and that its programs trace and lower at their real sizes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psynth_jax.bench import ttft
from psynth_jax.bench.gpu_check import __main__ as command
from psynth_jax.bench.gpu_check import kernels, large_cache, report
from psynth_jax.bench.gpu_check.piece import PARTS
from psynth_jax.bench.gpu_check.records import Records
from psynth_jax.bench.gpu_check.sizes import Sizes, full, miniature
from psynth_jax.bench.random_weights import random_branches, random_decoder
from psynth_jax.config import DecoderConfig
from psynth_jax.engine.batch_runner import STEP
from psynth_jax.engine.machine import buckets_of, machine_of
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.engine.step import Conditioning
from psynth_jax.engine.step_input import Layout
from psynth_jax.kv.pool import Lease, Places, write_tokens
from psynth_jax.kv.transfer import read_slots
from psynth_jax.mapper import Mapper
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder, parameter_shapes
from psynth_jax.ops.branch_attention import pallas_gpu
from psynth_jax.ops.branch_attention.cases import arguments
from psynth_jax.ops.cached_heads import CachedHeads
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
FIGURES = {
    "floor_s",
    "ratio_to_floor",
    "next_token_s",
    "next_token_floor_s",
    "torch_text_s",
    "torch_published_s",
}
FIGURES |= {
    "question",
    "ttft_branches_s",
    "ttft_text_s",
    "ratio",
    "torch_text_over_branches",
    "text_over_torch",
}


def _script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "launch/gpu_check.sh", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PSYNTH_PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


class TestScript:
    def test_without_a_gpu_it_is_one_line(self, tmp_path: Path) -> None:
        done = _script("--into", tmp_path / "out", CUDA_VISIBLE_DEVICES="")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: no GPU here: run it where there is one, or with --miniature\n"
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    @pytest.mark.torch
    def test_miniature(self, tmp_path: Path) -> None:
        done = _script("--miniature", "--into", tmp_path, PSYNTH_CACHE=str(tmp_path / "cache"))
        found = json.loads((tmp_path / "gpu_check.json").read_text())
        assert (done.returncode, found["ok"], found["wrong"]) == (0, True, []), done.stderr
        assert found["miniature"] and found["command"].startswith("launch/gpu_check.sh --miniature")
        assert {"device", "jax", "torch", "transformers", "python"} < set(found)
        assert set(found["pieces"]) == set(PARTS["a"] | PARTS["b"])
        assert {each["question"] for each in found["figures"]} == {"2x12", "3x20"}
        assert all(set(each) > FIGURES for each in found["figures"])
        assert {"workers_s", "workers_floor_s", "torch_workers_s", "workers_over_torch"} < set(found["workers"])
        assert {each["dtype"] for each in found["pieces"]["kernels"]["records"]} == {
            "float32",
            "bfloat16",
        }
        (trained,) = found["pieces"]["train"]["records"]
        assert np.isfinite(trained["loss"])
        assert (tmp_path / "gpu_check.txt").read_text() == done.stdout.replace("\r", "")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "NEEDED", ("jax", "no_such_package", "nor_this"))
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: missing packages: no_such_package, nor_this; install") and said.count("\n") == 1


class TestReport:
    def test_what_is_wrong_has_a_line(self) -> None:
        assert report.unsound("x", {"done": True, "records": [{"ok": True}, {}]}) == []
        assert report.unsound("x", {"error": "exit code 1: no"}) == ["x: exit code 1: no"]
        assert report.unsound("x", {}) == ["x: not finished"]
        piece = {
            "done": True,
            "skipped": ["y"],
            "records": [{"ok": False, "case": "z", "dtype": "int8"}],
        }
        assert report.unsound("x", piece) == [
            "x: no time for y",
            "x: outside its tolerance: z int8",
        ]

    def test_figures_join_both_sides(self) -> None:
        ours = {"question": "8x1024", "ttft_branches_s": 2.0, "ttft_text_s": 8.0}
        theirs = {"question": "8x1024", "torch_text_s": 4.0, "torch_published_s": 3.0}
        (found,) = report.figures({"ours": {"records": [ours]}, "torch": {"records": [theirs]}})
        assert found["torch_text_over_branches"] == 2.0 and found["text_over_torch"] == 2.0
        assert found["torch_published_over_branches"] == 1.5
        assert report.figures({"torch": {"records": [theirs]}}) == [theirs]

    def test_a_piece_that_was_ended_leaves_what_it_had(self, tmp_path: Path) -> None:
        records = Records(tmp_path / "x.json", ends=0.0)
        records.note(model="m")
        records.add({"question": "8x1024"})
        assert not records.has_time_for("the rest")
        found = json.loads((tmp_path / "x.json").read_text())
        assert found == {"model": "m", "records": [{"question": "8x1024"}], "skipped": ["the rest"]}

    def test_an_earlier_run_of_the_other_part_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, "_piece", lambda name, *_, **__: {"done": True, "records": [], "seconds": 1.0})
        command.run(("a",), tmp_path, small=True)
        found = command.run(("b",), tmp_path, small=True)
        assert set(found["pieces"]) == set(PARTS["a"] | PARTS["b"])
        assert set(command.run(("a",), tmp_path, small=False)["pieces"]) == set(PARTS["a"])

    def test_a_part_out_of_time_begins_nothing(self, tmp_path: Path) -> None:
        found = command._piece("train", tmp_path, 3.0, 3.0, small=True)
        assert found == {"error": "not begun: 3 s were left of its part", "seconds": 0.0}


class TestRandomWeights:
    def test_decoder(self) -> None:
        decoder = random_decoder(tiny_config(qk_norm=True, family="qwen3"), jnp.bfloat16)
        parameters = decoder.parameters()
        assert {value.dtype for value in parameters.values()} == {jnp.dtype(jnp.bfloat16)}
        norm, gate = (np.asarray(parameters[f"layers.{name}"], np.float32) for name in ("q_norm", "gate"))
        assert abs(norm.mean() - 1) < 0.02 and abs(gate.std() - 0.02) < 0.002
        assert not np.array_equal(gate[0], gate[1]), "every layer has numbers of its own"

    @pytest.mark.slow
    def test_branches_are_read(self) -> None:
        model = Model(random_decoder(tiny_config(), jnp.float32), None, frozenset(), "random")
        branches = random_branches(model, 3, 20)
        assert branches.lengths == [20, 20, 20]
        result = ttft.synthesizer(model).synthesize([1, 2, 3], branches, max_new_tokens=2)
        assert (result.cached_tokens, len(result.token_ids)) == (60, 2)

    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    def test_branches_lie_in_the_models_pool(self, dtype: str) -> None:
        """They take what a worker's would, hold numbers of their own, and leave all else of the pool as it was."""
        model = Model(random_decoder(tiny_config(), jnp.float32), None, frozenset(), "random")
        pool = machine_of(model).pool(dtype)
        other = pool.reserve(5)
        branches = random_branches(model, 2, 150, dtype=dtype)
        assert machine_of(model).pool(dtype) is pool
        segments = [segment for branch in branches.questions[0] for segment in branch.segments]
        held = [segment.held for segment in segments if isinstance(segment.held, Lease)]
        assert [lease.slots for lease in held] == [150, 150] and {lease.pool for lease in held} == {pool}
        one, two = (read_slots(lease).as_float32().arrays["k"] for lease in held)
        for numbers in (one, two):
            assert abs(numbers.std() - 1) < 0.05 and abs(numbers.mean()) < 0.05
            assert not np.array_equal(numbers[..., :64, :], numbers[..., 64:128, :]), "pages are drawn apart"
        assert not np.array_equal(one, two)
        assert not read_slots(other).arrays["k"].any()
        in_use = pool.used_slots
        del branches, segments, held
        assert pool.used_slots == in_use - 2 * 192


# --------------------------------------------------------------------------------- at real sizes, without a GPU


def abstract_gpu() -> AbstractContextManager[object]:
    """Name a GPU to lower for."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def lowered_for_cuda(function: Any, *operands: Any) -> str:
    with abstract_gpu():
        return jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), tree)


SIZES = full()


def test_sizes_pass_what_an_int32_counts() -> None:
    elements = {each.dtype: each.elements for each in SIZES.large_caches}
    assert 2**31 < elements["bfloat16"] < 2**32 < elements["int8"]
    # Keys and values, of which one cache exists at a time, leave most of 78 GiB.
    assert all(2 * each.elements * jnp.dtype(each.dtype).itemsize < 12 << 30 for each in SIZES.large_caches)


@pytest.mark.slow
@pytest.mark.parametrize("each", SIZES.kernels, ids=lambda each: f"{each.case.name}-{each.dtype}-{each.cache_dtype}")
def test_kernel_cases_lower(each: Any) -> None:
    drawn = jax.eval_shape(lambda: arguments(each.case, jnp.dtype(each.dtype), each.cache_dtype)[:4])
    scale = arguments(miniature().kernels[0].case)[5]

    def kernel(q: Any, k: Any, v: Any, context: Any) -> Any:
        return pallas_gpu.attend(q, k, v, context, 1, scale, None, q.dtype)[0]

    function = kernels.with_gradients if each.backward else kernels.forward
    text = lowered_for_cuda(lambda *new: function(kernel, *new), *drawn)
    assert text.count("__gpu$xla.gpu.triton") == (3 if each.backward else 1)


@pytest.mark.parametrize("large", SIZES.large_caches, ids=lambda large: large.dtype)
def test_large_caches_lower(large: Any) -> None:
    shape = (large.layers, 1, large.kv_heads, large.slots, large.width)
    heads = jax.eval_shape(lambda: CachedHeads.allocate(shape, large.dtype, packed=False))
    new = jax.ShapeDtypeStruct((large.layers, 1, large.tokens, large.kv_heads, large.width), jnp.bfloat16)
    places = Places(*(jax.ShapeDtypeStruct(sizes, jnp.int32) for sizes in ((1,), (1, large.tokens))))
    assert jax.eval_shape(write_tokens, heads, new, new, places).slots == large.slots
    assert lowered_for_cuda(write_tokens, heads, new, new, places).count("stablehlo.scatter") >= 2
    q = jax.ShapeDtypeStruct((1, large.queries, large.heads, large.width), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, large.queries, large.kv_heads, large.width), jnp.bfloat16)
    scale = arguments(miniature().kernels[0].case)[5]

    def attended(q: Any, k: Any, heads: Any) -> Any:
        context = large_cache._context(large, heads, large.slots - large.tokens)
        return pallas_gpu.attend(q, k, k, context, large.layers - 1, scale, None, jnp.float32)[0]

    assert lowered_for_cuda(attended, q, k, heads).count("__gpu$xla.gpu.triton") == 1


def abstract_decoder(config: DecoderConfig) -> Decoder:
    parameters = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in parameter_shapes(config).items()}
    return Decoder(config, parameters)


SHORT, LONG = (question for question, _ in SIZES.questions)
WRITING = SIZES.writing
POOL_SLOTS = 1 << 17  # about what half of 50 GiB holds
PROGRAMS = {  # rows that are run, tokens that each has left, question whose branches are read
    "first token from 8x1024": (1, 256, SHORT),
    "later token from 8x1024": (1, 1, SHORT),
    "first token from 16x2048": (1, 256, LONG),
    "later token from 16x2048": (1, 1, LONG),
    "first chunk of 8x1024 as text": (1, SHORT.cached + 256, None),
    "last chunk of 16x2048 as text": (1, (LONG.cached + 256) % 2048, None),
    "workers' prompts": (WRITING.rows, WRITING.prompt_tokens, None),
    "workers' tokens": (WRITING.rows, 1, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_steps_lower(program: Any) -> None:
    """The scheduler's own program at Qwen3-14B's shape, over a pool of about the size that a GPU gets."""
    rows, left, question = program
    config, buckets = SIZES.model, buckets_of("gpu")
    model = abstract_decoder(config)
    shape = (buckets.rows_of(rows), 1) if left == 1 else buckets.chunk_of([left] * rows)
    branches = buckets.branches_of(0 if question is None else question.branches)
    layout = Layout(branches, buckets.runs_of(branches, branches))
    sizes = (config.layers, 1, config.kv_heads, POOL_SLOTS, config.head_width)
    pool = jax.eval_shape(lambda: CachedHeads.allocate(sizes, jnp.bfloat16, packed=False))
    mapper = None if question is None else jax.eval_shape(lambda: Mapper.initialise(jax.random.key(0)))
    before = jax.ShapeDtypeStruct((buckets.most_rows,), jnp.int32)
    array = jax.ShapeDtypeStruct((shape[0], layout.width + 2 * shape[1]), jnp.int32)
    static = {"layout": layout, "row_axes": (), "implementation": "pallas_gpu"}
    with abstract_gpu():
        traced = Programs(model).traced(ProgramCall(STEP, (Conditioning(mapper), pool, before, array), static))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1


def test_the_chunks_of_a_long_text_are_large() -> None:
    """Otherwise the text route, which branches are compared with, would be slower than it has to be."""
    buckets = buckets_of("gpu")
    assert buckets.chunk_of([LONG.cached]) == (1, 2048)
    assert buckets.chunk_of([WRITING.prompt_tokens] * WRITING.rows) == (8, 64)


@pytest.mark.slow
def test_drawing_14_billion_parameters_traces() -> None:
    drawn = jax.eval_shape(lambda: random_decoder(SIZES.model, jnp.bfloat16, layers="stacked").parameters())
    assert {name: value.shape for name, value in drawn.items()} == parameter_shapes(SIZES.model)
    count = sum(value.size for value in drawn.values())
    assert 14e9 < count < 15e9
    separate = jax.eval_shape(lambda: nnx.state(random_decoder(SIZES.model, jnp.bfloat16, layers="separate")))
    assert sum(value.size for value in jax.tree.leaves(separate)) == count


def test_both_sizes_have_the_same_pieces() -> None:
    for each in dataclasses.fields(Sizes):
        small, large = getattr(miniature(), each.name), getattr(full(), each.name)
        assert type(small) is type(large)
        assert not isinstance(small, tuple) or small
