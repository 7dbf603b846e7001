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
from psynth_jax.buckets import Buckets
from psynth_jax.engine import machine
from psynth_jax.engine.batch_runner import STEP
from psynth_jax.engine.programs import ProgramCall
from psynth_jax.engine.sequences import TokenSequence
from psynth_jax.kv.pool import Lease
from tests.processes import run_two
from tests.slow import exhaustive_but
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


@pytest.fixture(scope="module", params=exhaustive_but(MESHES, fast=[ALL_AXES], full=MESHES[-1:]))
def sharded(request: pytest.FixtureRequest) -> ps.ParallelSynthesis:
    return synthesizer(request.param)


@pytest.fixture(scope="module")
def worked(sharded: ps.ParallelSynthesis) -> ps.Branches:
    return sharded.work(PROMPTS, max_new_tokens=6)


def assert_close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


def test_workers_write_the_same(worked: ps.Branches, expected: ps.Branches) -> None:
    assert worked.token_ids == expected.token_ids


def blocks_of(branches: ps.Branches) -> list[list[int]]:
    """Return the block of the pool that each branch lies on, by question."""
    found = []
    for group in branches.questions:
        blocks = []
        for branch in group:
            (held,) = {run.block for segment in branch.segments for run in leased(segment.held).runs}
            blocks.append(held)
        found.append(blocks)
    return found


def leased(held: Any) -> Lease:
    assert isinstance(held, Lease)
    return held


def test_caches_lie_as_declared(worked: ps.Branches, sharded: ps.ParallelSynthesis) -> None:
    """Branches are dealt round robin over the blocks of their question's part of `data`."""
    mesh = sharded.model.mesh
    assert mesh is not None
    heads = sharded.runner.pool.heads
    spec = P(None, ("data", "branch"), "tensor")
    assert heads.v is not None
    assert heads.k.sharding.is_equivalent_to(NamedSharding(mesh, spec), 5)
    assert heads.v.sharding.is_equivalent_to(NamedSharding(mesh, spec), 5)
    data, branch = mesh.shape["data"], mesh.shape["branch"]
    assert heads.rows == data * branch
    held = {shard.data.nbytes for shard in heads.k.addressable_shards}
    assert held == {heads.k.nbytes // (data * branch * mesh.shape["tensor"])}
    second = branch if data == 2 else 0
    assert blocks_of(worked) == [[i % branch for i in range(3)], [second + i % branch for i in range(2)]]


@pytest.mark.parametrize("sharded", [ALL_AXES], indirect=True)
def test_a_shared_prompt_is_prefilled_once_on_each_block(
    sharded: ps.ParallelSynthesis, expected: ps.Branches, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, ran = sharded.runner, list[TokenSequence]()
    run = runner.run

    def noted(sequences: Any, *others: Any) -> None:
        ran.extend(sequences)
        run(sequences, *others)

    monkeypatch.setattr(runner, "run", noted)
    runner.forget_prompts()
    before = runner.scheduler.counts["prefill_tokens"]
    assert sharded.work(PROMPTS, max_new_tokens=6).token_ids == expected.token_ids
    assert [sequence.block for sequence in ran] == [0, 1, 0, 2, 3]
    assert [sequence.shared_tokens for sequence in ran] == [0, 0, 18, 0, 0]
    assert all(sequence.reads_its_block_only for sequence in ran)
    whole = sum(sequence.prompt_length for sequence in ran)
    assert runner.scheduler.counts["prefill_tokens"] - before == whole - 18


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
def test_texts_of_very_different_lengths(sharded: ps.ParallelSynthesis, single: ps.ParallelSynthesis) -> None:
    texts = [token_ids(80 + number, length) for number, length in enumerate((3, 90, 5, 2, 70, 8, 1, 4))]
    scores = [synth.score(QUESTIONS[0], TARGETS[0], synth.encode(texts)) for synth in (sharded, single)]
    assert_close(*scores)


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
    for turn in (token_ids(80, 7), token_ids(81, 60)):
        assert here.reply(turn, max_new_tokens=4).token_ids == there.reply(turn, max_new_tokens=4).token_ids


@pytest.mark.parametrize("sharded", [ALL_AXES], indirect=True)
def test_text_and_sampling(sharded: ps.ParallelSynthesis, single: ps.ParallelSynthesis) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    found = sharded.synthesize_text(QUESTIONS[0], TEXTS[:2], **arguments)
    assert found.token_ids == single.synthesize_text(QUESTIONS[0], TEXTS[:2], **arguments).token_ids


COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.-]+)(.*?)^}", re.MULTILINE | re.DOTALL)
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(")


def moved_bytes(compiled: str) -> list[int]:
    """Return the bytes of every array that a collective of the compiled text puts out on a device."""
    arrays = [
        shape for shapes, _ in COLLECTIVE.findall(compiled) for shape in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes)
    ]
    return [int(bits) // 8 * math.prod(int(size) for size in sizes.split(",") if size) for bits, sizes in arrays]


def without_branches(compiled: str) -> str:
    """Return a compiled text without what runs only where a condition holds."""
    branches: list[str] = []
    for names in re.findall(r"branch_computations=\{([^}]*)\}", compiled):
        branches += names.split(", ")
    for name in re.findall(r"(?:true|false)_computation=(%[\w.-]+)", compiled):
        branches.append(name)
    kept = []
    for name, computation in COMPUTATION.findall(compiled):
        if name not in branches:
            kept.append(computation)
    return "\n".join(kept)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short prefill calls, and a pool that a few branches fill."""
    monkeypatch.setattr(machine, "LEAST_SLOTS", 256)
    monkeypatch.setattr(machine, "buckets_here", lambda: Buckets(decode=(1, 8), prefill=((1, 8),)))


def steps_of(synth: ps.ParallelSynthesis, monkeypatch: pytest.MonkeyPatch) -> list[ProgramCall]:
    """Return a list that is filled with the steps that run from now on."""
    programs, ran = synth.runner.programs, list[ProgramCall]()
    run = programs.run

    def noted(call: ProgramCall) -> Any:
        if call.program is STEP:
            ran.append(call)
        return run(call)

    monkeypatch.setattr(programs, "run", noted)
    return ran


def tokens_of(call: ProgramCall) -> int:
    """Return T of a step."""
    return int((call.args[3].shape[1] - call.static["layout"].width) // 2)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("axes", MESHES[:3])
def test_nothing_as_large_as_a_layer_of_a_cache_moves(axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synth = synthesizer(axes)
    branches = synth.encode([token_ids(i, 130) for i in range(8)])
    ran = steps_of(synth, monkeypatch)
    synth.synthesize(QUESTIONS[0][:8], branches, max_new_tokens=3)
    assert {tokens_of(call) for call in ran} == {1, 8}
    for call in ran:
        compiled = synth.runner.programs.get(call)
        moved, heads = moved_bytes(compiled.as_text()), call.args[1]
        pieces = math.prod(dict(synth.model.mesh.shape).values())  # type: ignore[union-attr]
        layer_of_a_device = 2 * heads.k.nbytes // pieces // heads.layers
        assert moved and max(moved) < layer_of_a_device / 2, (max(moved), layer_of_a_device)
        out = jax.tree.leaves(compiled.output_shardings[0])[0]
        assert out.is_equivalent_to(synth.runner.pool.heads.k.sharding, 5)


def test_every_branch_device_holds_its_share_of_the_branches() -> None:
    for count in (1, 2, 4, 8):
        model, mesh = tiny_model(**SHAPE), ps.make_mesh({"branch": count}, jax.devices()[:count])
        branches = ps.ParallelSynthesis(model, mesh=mesh).encode([token_ids(i, 40) for i in range(8)])
        (blocks,) = blocks_of(branches)
        assert [blocks.count(block) for block in range(count)] == [8 // count] * count


@pytest.mark.usefixtures("small")
def test_one_small_collective_a_layer_merges_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `branch` alone sharded, the scan over layers has exactly the one that merges partial results."""
    synth = synthesizer("branch=8")
    branches = synth.encode(TEXTS)
    ran = steps_of(synth, monkeypatch)
    synth.synthesize(QUESTIONS[0], branches, max_new_tokens=2)
    assert tokens_of(ran[-1]) == 1
    text = synth.runner.programs.get(ran[-1]).as_text()
    heads, width = SHAPE["heads"], 10
    assert moved_bytes(text) == [8 * heads * (width + 2) * 4]


@pytest.mark.usefixtures("small")
def test_workers_merge_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the workers' step only what was sampled leaves a device: a number a row, of a token and of its probabilities.

    What a row asks for, such as its most likely tokens, is gathered where one does.
    """
    synth = synthesizer("branch=8")
    ran = steps_of(synth, monkeypatch)
    synth.work(PROMPTS[0], max_new_tokens=3)
    for call in ran:
        rows = call.args[3].shape[0]
        compiled = synth.runner.programs.get(call).as_text()
        moved = moved_bytes(without_branches(compiled))
        assert moved and len(moved) < len(moved_bytes(compiled))
        assert all(size <= 3 * rows * 4 for size in moved), moved


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
    """They keep the same books also where their garbage collectors, and what they hold on to, differ."""
    first, second = (json.loads(line) for line in run_two("tests.synthesis.one_of_two_processes"))
    dropped = []
    for turn in range(8):
        texts = [text[turn % 3 :] for text in TEXTS]
        dropped.append(single.score(QUESTIONS[0], TARGETS[0], single.encode(texts)))
    assert first["freed"] and first["freed"] == second["freed"]
    assert (first["slots"], first["used"]) == (second["slots"], second["used"])
    for found in (first, second):
        assert found["devices"] == 8
        assert found["workers"] == expected.token_ids
        assert found["answers"] == [r.token_ids for r in single.synthesize(QUESTIONS, expected, max_new_tokens=5)]
        for logp, right in zip(found["scores"], single.score(QUESTIONS, TARGETS, expected), strict=True):
            assert_close(logp, right)
        assert "the-second" in found["thread"]
        for logp, right in zip(found["dropped"], dropped, strict=True):
            assert_close(logp, right)
