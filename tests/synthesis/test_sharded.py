"""Over a mesh everything computes what it computes on one device, and nothing as large as a layer of a cache moves."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import psynth_jax as ps
from psynth_jax.branches import branch_view
from psynth_jax.engine.programs import ProgramCall
from psynth_jax.synthesis import engine, step
from psynth_jax.synthesis.sampling import SamplingOptions, row_sampling
from psynth_jax.synthesis.step import Reader, Rows
from tests.processes import run_two
from tests.tiny import random_lora, random_mapper, talking_model, tiny_model, token_ids

pytestmark = pytest.mark.slow

ALL_AXES = "data=2,branch=2,tensor=2"  # the mesh for what need not be seen on each of them: compiling is slow
MESHES = ("branch=8", "branch=4,tensor=2", ALL_AXES, "fsdp=2,tensor=4")
SHAPE = {"layers": 2, "heads": 4, "mlp_width": 32, "width": 24}  # tensor=4 needs copies of the two KV heads

# Two questions, of three workers and of two, with a prompt that the workers of each share.
PROMPTS = [[token_ids(30 + q, 18) + token_ids(10 * q + i, 3 + 2 * i) for i in range(3 - q)] for q in range(2)]
QUESTIONS = [token_ids(50, 9), token_ids(51, 12)]
TARGETS = [token_ids(60, 6), token_ids(61, 4)]
TEXTS = [token_ids(70 + i, 11 + 9 * i) for i in range(5)]


def synthesizer(axes: str | None) -> ps.ParallelSynthesis:
    model = tiny_model(**SHAPE)
    mesh = None if axes is None else ps.make_mesh(axes)
    synth = ps.ParallelSynthesis(model, adapter=random_lora(model.config, 1), mesh=mesh)
    synth.set_mapper(random_mapper(1))
    return synth


@pytest.fixture(scope="module")
def single() -> ps.ParallelSynthesis:
    return synthesizer(None)


@pytest.fixture(scope="module")
def expected(single: ps.ParallelSynthesis) -> ps.Branches:
    return single.work(PROMPTS, max_new_tokens=6)


@pytest.fixture(scope="module", params=MESHES)
def sharded(request: pytest.FixtureRequest) -> ps.ParallelSynthesis:
    return synthesizer(request.param)


@pytest.fixture(scope="module")
def worked(sharded: ps.ParallelSynthesis) -> ps.Branches:
    return sharded.work(PROMPTS, max_new_tokens=6)


def assert_close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


def test_workers_write_the_same(worked: ps.Branches, expected: ps.Branches) -> None:
    assert worked.token_ids == expected.token_ids


def test_caches_lie_as_declared(worked: ps.Branches, sharded: ps.ParallelSynthesis) -> None:
    mesh = sharded.model.mesh
    assert mesh is not None
    cache = worked.questions[0][0].segments[0].cache
    spec = P(None, ("data", "branch"), "tensor")
    assert cache.heads.k.sharding.is_equivalent_to(NamedSharding(mesh, spec), 5)
    assert cache.heads.v.sharding.is_equivalent_to(NamedSharding(mesh, spec), 5)
    assert cache.rows % (mesh.shape["data"] * mesh.shape["branch"]) == 0
    held = {shard.data.nbytes for shard in cache.heads.k.addressable_shards}
    pieces = mesh.shape["data"] * mesh.shape["branch"] * mesh.shape["tensor"]
    assert held == {cache.heads.k.nbytes // pieces}


def test_several_questions(
    sharded: ps.ParallelSynthesis, worked: ps.Branches, single: ps.ParallelSynthesis, expected: ps.Branches
) -> None:
    found = sharded.synthesize(QUESTIONS, worked, max_new_tokens=5)
    wanted = single.synthesize(QUESTIONS, expected, max_new_tokens=5)
    assert [result.token_ids for result in found] == [result.token_ids for result in wanted]
    for logp, right in zip(
        sharded.score(QUESTIONS, TARGETS, worked), single.score(QUESTIONS, TARGETS, expected), strict=True
    ):
        assert_close(logp, right)


def test_branches_from_any_rows(
    sharded: ps.ParallelSynthesis, worked: ps.Branches, single: ps.ParallelSynthesis, expected: ps.Branches
) -> None:
    """Questions swapped: with `data` cut, each then reads rows that lie with the other."""
    swapped = [worked[1], worked[0][[2, 0]]]
    for logp, right in zip(
        sharded.score(QUESTIONS, TARGETS, swapped),
        single.score(QUESTIONS, TARGETS, [expected[1], expected[0][[2, 0]]]),
        strict=True,
    ):
        assert_close(logp, right)


def test_encoded_joined_and_loaded(
    sharded: ps.ParallelSynthesis, worked: ps.Branches, single: ps.ParallelSynthesis, expected: ps.Branches, tmp_path: Path
) -> None:
    made = sharded.encode(TEXTS)
    right = single.score(QUESTIONS[0], TARGETS[0], ps.Branches.join(single.encode(TEXTS), expected[1]))
    mixed = ps.Branches.join(made, worked[1])
    assert_close(sharded.score(QUESTIONS[0], TARGETS[0], mixed), right)
    made.save(tmp_path / "branches")
    loaded = ps.Branches.load(tmp_path / "branches")
    assert_close(sharded.score(QUESTIONS[0], TARGETS[0], ps.Branches.join(loaded, worked[1])), right)
    assert_close(single.score(QUESTIONS[0], TARGETS[0], ps.Branches.join(loaded, expected[1])), right)


@pytest.mark.parametrize("sharded", [ALL_AXES], indirect=True)
def test_texts_of_very_different_lengths(
    sharded: ps.ParallelSynthesis, single: ps.ParallelSynthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are fed as lists of their tokens, one on every part of the mesh that has rows of its own."""
    programs, ran = sharded.engine.programs, []
    run = programs.run

    def noted(call: ProgramCall) -> Any:
        ran.append(call)
        return run(call)

    monkeypatch.setattr(programs, "run", noted)
    monkeypatch.setattr(engine, "LEAST_SAVED", 1)
    texts = [token_ids(80 + number, length) for number, length in enumerate((3, 90, 5, 2, 70, 8, 1, 4))]
    scores = [synth.score(QUESTIONS[0], TARGETS[0], synth.encode(texts)) for synth in (sharded, single)]
    np.testing.assert_allclose(*scores, atol=2e-5)
    fed = [call.args[1] for call in ran if call.program is step.ADVANCE]
    assert any(rows.ragged is not None for rows in fed)


def test_branches_made_elsewhere(
    sharded: ps.ParallelSynthesis, worked: ps.Branches, single: ps.ParallelSynthesis, expected: ps.Branches
) -> None:
    right = single.score(QUESTIONS[0], TARGETS[0], expected[0])
    assert_close(sharded.score(QUESTIONS[0], TARGETS[0], expected[0]), right)
    assert_close(single.score(QUESTIONS[0], TARGETS[0], worked[0]), right)


@pytest.mark.parametrize("sharded", [ALL_AXES], indirect=True)
def test_conversation(
    sharded: ps.ParallelSynthesis, worked: ps.Branches, single: ps.ParallelSynthesis, expected: ps.Branches
) -> None:
    here, there = sharded.session(worked[0]), single.session(expected[0])
    for turn in (token_ids(80, 7), token_ids(81, 60)):  # the second outgrows the cache
        assert here.reply(turn, max_new_tokens=4).token_ids == there.reply(turn, max_new_tokens=4).token_ids


@pytest.mark.parametrize("sharded", [ALL_AXES], indirect=True)
def test_text_and_sampling(sharded: ps.ParallelSynthesis, single: ps.ParallelSynthesis) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    found = sharded.synthesize_text(QUESTIONS[0], TEXTS[:2], **arguments)
    assert found.token_ids == single.synthesize_text(QUESTIONS[0], TEXTS[:2], **arguments).token_ids


STATIC = {"fresh": False, "greedy": True, "implementation": "auto"}
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(")


def moved_bytes(compiled: str) -> list[int]:
    """Return the bytes of every array that a collective of the compiled text puts out on a device."""
    arrays = [
        shape for shapes, _ in COLLECTIVE.findall(compiled) for shape in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes)
    ]
    return [int(bits) // 8 * math.prod(int(size) for size in sizes.split(",") if size) for bits, sizes in arrays]


@pytest.mark.parametrize("axes", MESHES[:3])
@pytest.mark.parametrize("tokens", [1, 8])
def test_nothing_as_large_as_a_layer_of_a_cache_moves(axes: str, tokens: int) -> None:
    synth = synthesizer(axes)
    engine = synth.engine
    branches = synth.encode([token_ids(i, 130) for i in range(8)])  # 256 slots a row
    cache = engine.allocate(1, 64)
    view = branch_view(synth._placed.of(branches.questions))
    one = np.ones(1, np.int32)
    rows = Rows(np.zeros((1, tokens), np.int32), one, one, one)
    hidden = np.zeros((1, SHAPE["width"]), np.float32)
    sampling = row_sampling(SamplingOptions(), [(0, 0)])
    arguments = engine.place((Reader(view=view), rows, cache, hidden, sampling, np.int32(1)))
    compiled = engine.programs.get(ProgramCall(step.ADVANCE, arguments, STATIC))
    moved = moved_bytes(compiled.as_text())
    heads = branches.questions[0][0].segments[0].cache.heads
    layer_of_a_device = 2 * heads.k.addressable_shards[0].data.nbytes // heads.layers
    assert moved and max(moved) < layer_of_a_device / 2, (max(moved), layer_of_a_device)
    out_cache = jax.tree.leaves(compiled.output_shardings[0])[0]
    assert out_cache.is_equivalent_to(cache.heads.k.sharding, 5)


def test_twice_the_branch_devices_hold_half_of_the_cache_each() -> None:
    bytes_of_a_device = []
    for count in (1, 2, 4, 8):
        model, mesh = tiny_model(**SHAPE), ps.make_mesh({"branch": count}, jax.devices()[:count])
        branches = ps.ParallelSynthesis(model, mesh=mesh).encode([token_ids(i, 40) for i in range(8)])
        heads = branches.questions[0][0].segments[0].cache.heads
        held = [
            sum(piece.data.nbytes for piece in x.addressable_shards if piece.device == mesh.devices.flat[0])
            for x in jax.tree.leaves(heads)
        ]
        bytes_of_a_device.append(sum(held))
    whole = bytes_of_a_device[0]
    assert bytes_of_a_device == [whole, whole // 2, whole // 4, whole // 8]


def test_one_small_collective_a_layer_merges_branches() -> None:
    """With `branch` alone cut, the scan over layers has exactly the one that merges partial results."""
    synth = synthesizer("branch=8")
    engine, branches = synth.engine, synth.encode(TEXTS)
    view = branch_view(synth._placed.of(branches.questions))
    one = np.ones(1, np.int32)
    rows = Rows(np.zeros((1, 1), np.int32), one, one, one)
    arguments = engine.place((Reader(view=view), rows, engine.allocate(1, 64), np.zeros((1, 24), np.float32)))
    call = ProgramCall(step.ADVANCE, (*arguments, None, np.int32(0)), STATIC)
    text = engine.programs.get(call).as_text()
    heads, width = SHAPE["heads"], 10
    assert moved_bytes(text) == [8 * heads * (width + 2) * 4]


def test_streams_text(single: ps.ParallelSynthesis) -> None:
    model = talking_model(**SHAPE)
    pieces: dict[str | None, list[tuple[int | None, str]]] = {}
    for axes in (None, "branch=4,tensor=2"):
        synth = ps.ParallelSynthesis(model, mesh=None if axes is None else ps.make_mesh(axes))
        seen: list[tuple[int | None, str]] = []
        synth.work(["one", "another", "third"], 4, on_token=lambda t, seen=seen: seen.append((t.worker, str(t))))
        pieces[axes] = sorted(seen, key=lambda piece: piece[0] or 0)
    assert pieces[None] == pieces["branch=4,tensor=2"]


def test_two_processes(single: ps.ParallelSynthesis, expected: ps.Branches) -> None:
    for line in run_two("tests.synthesis.one_of_two_processes"):
        found = json.loads(line)
        assert found["devices"] == 8
        assert found["workers"] == expected.token_ids
        assert found["answers"] == [r.token_ids for r in single.synthesize(QUESTIONS, expected, max_new_tokens=5)]
        for logp, right in zip(found["scores"], single.score(QUESTIONS, TARGETS, expected), strict=True):
            assert_close(logp, right)
