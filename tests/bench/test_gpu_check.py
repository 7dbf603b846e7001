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

from psynth_jax.bench import ttft
from psynth_jax.bench.gpu_check import __main__ as command
from psynth_jax.bench.gpu_check import kernels, large_cache, report
from psynth_jax.bench.gpu_check.piece import PARTS
from psynth_jax.bench.gpu_check.records import Records
from psynth_jax.bench.gpu_check.sizes import Sizes, full, miniature
from psynth_jax.bench.random_weights import PREFIX, random_branches, random_cache, random_decoder
from psynth_jax.branches import BranchView
from psynth_jax.cache import KVCache
from psynth_jax.config import DecoderConfig
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.mapper import Mapper
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder, parameter_shapes
from psynth_jax.ops.branch_attention import ContextPart, Segments, pallas_gpu
from psynth_jax.ops.branch_attention.cases import arguments
from psynth_jax.synthesis import step
from psynth_jax.synthesis.engine import slots_needed
from psynth_jax.synthesis.sampling import SamplingOptions, row_sampling
from psynth_jax.synthesis.step import Reader, Rows
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
    drawn = jax.eval_shape(lambda: arguments(each.case, jnp.dtype(each.dtype), each.cache_dtype)[:5])
    scale = arguments(miniature().kernels[0].case)[6]

    def kernel(q: Any, k: Any, v: Any, own: Any, context: Any) -> Any:
        return pallas_gpu.attend(q, k, v, own, context, 1, scale, None, q.dtype)[0]

    function = kernels.with_gradients if each.backward else kernels.forward
    text = lowered_for_cuda(lambda *new: function(kernel, *new), *drawn)
    assert text.count("__gpu$xla.gpu.triton") == (3 if each.backward else 1)


@pytest.mark.parametrize("large", SIZES.large_caches, ids=lambda large: large.dtype)
def test_large_caches_lower(large: Any) -> None:
    allocated = jax.eval_shape(
        lambda: KVCache.allocate(large.layers, 1, large.kv_heads, large.slots, large.width, large.dtype, packed=False)
    )
    new = jax.ShapeDtypeStruct((large.layers, 1, large.tokens, large.kv_heads, large.width), jnp.bfloat16)
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    assert jax.eval_shape(KVCache.append, allocated, new, new, one, one).slots == large.slots
    q = jax.ShapeDtypeStruct((1, large.queries, large.heads, large.width), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, large.queries, large.kv_heads, large.width), jnp.bfloat16)
    scale = arguments(miniature().kernels[0].case)[6]

    def attended(q: Any, k: Any, heads: Any) -> Any:
        context = large_cache._context(large, heads, large.slots - large.tokens)
        return pallas_gpu.attend(q, k, k, None, context, large.layers - 1, scale, None, jnp.float32)[0]

    assert lowered_for_cuda(attended, q, k, allocated.heads).count("__gpu$xla.gpu.triton") == 1


def abstract_decoder(config: DecoderConfig) -> Decoder:
    parameters = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in parameter_shapes(config).items()}
    return Decoder(config, parameters)


SHORT, LONG = (question for question, _ in SIZES.questions)
WRITING = SIZES.writing
PROGRAMS = {  # rows, tokens, question whose caches are read, tokens of the prompt, whether nothing is cached yet
    "first token from 8x1024": (1, 256, SHORT, 256, True),
    "later token from 8x1024": (1, 1, SHORT, 256, False),
    "first token from 16x2048": (1, 256, LONG, 256, True),
    "later token from 16x2048": (1, 1, LONG, 256, False),
    "first chunk of 8x1024 as text": (1, 512, None, SHORT.cached + 256, True),
    "last chunk of 16x2048 as text": (1, 256, None, LONG.cached + 256, False),
    "workers' prompts": (WRITING.rows, WRITING.prompt_tokens, None, WRITING.prompt_tokens, True),
    "workers' tokens": (WRITING.rows, 1, None, WRITING.prompt_tokens, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_steps_lower(program: Any) -> None:
    """The engine's own program at Qwen3-14B's shape, with branches as `random_branches` makes them."""
    batch, tokens, question, prompt, fresh = program
    model = abstract_decoder(SIZES.model)
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    reader = Reader()
    if question is not None:
        count, filled = question.branches, PREFIX + question.branch_tokens
        read = jax.eval_shape(lambda: random_cache(SIZES.model, jnp.bfloat16, count, filled)).heads
        part = ContextPart(read, Segments(*[ints(1, count)] * 4))
        valid = jax.ShapeDtypeStruct((1, count), bool)
        mapper = jax.eval_shape(lambda: Mapper.initialise(jax.random.key(0)))
        reader = Reader(mapper, view=BranchView((part,), ints(1, count), ints(1, count), valid))
    own = jax.eval_shape(lambda: model.allocate_cache(batch, slots_needed(0, prompt, 64), jnp.bfloat16))
    rows = Rows(ints(batch, tokens), ints(batch), ints(batch), ints(batch))
    hidden = jax.ShapeDtypeStruct((batch, SIZES.model.width), jnp.bfloat16)
    sampling = shapes(row_sampling(SamplingOptions(), [(0, 0)] * batch))
    with abstract_gpu():
        static = {"fresh": fresh, "greedy": True, "implementation": "pallas_gpu"}
        arguments = reader, rows, own, hidden, sampling, ints()
        traced = Programs(model).traced(ProgramCall(step.ADVANCE, arguments, static))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1


@pytest.mark.slow
def test_drawing_14_billion_parameters_traces() -> None:
    drawn = jax.eval_shape(lambda: random_decoder(SIZES.model, jnp.bfloat16).parameters())
    assert {name: value.shape for name, value in drawn.items()} == parameter_shapes(SIZES.model)
    assert 14e9 < sum(value.size for value in drawn.values()) < 15e9


def test_both_sizes_have_the_same_pieces() -> None:
    for each in dataclasses.fields(Sizes):
        small, large = getattr(miniature(), each.name), getattr(full(), each.name)
        assert type(small) is type(large)
        assert not isinstance(small, tuple) or small
