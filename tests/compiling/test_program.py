"""What `psynth compile` compiles is what runs: the same programs over the same forms of input, static arguments included."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.compiling.program import AbstractCall, inference_call, slots_of_a_block
from psynth_jax.compiling.train_program import training_call
from psynth_jax.compiling.workload import Workload, workload
from psynth_jax.engine.batch_runner import STEP
from psynth_jax.engine.machine import PAGE
from psynth_jax.engine.programs import ProgramCall
from psynth_jax.presets import PRESETS, Preset
from psynth_jax.training import step as training_step
from tests.tiny import random_mapper, tiny_config, tiny_model, token_ids

MESH = {"branch": 2, "tensor": 2}
MLP = 32  # which tensor divides


def asked(program: str, **changed: Any) -> Workload:
    return workload({"topology": "v5e-4", "model": "llama-3.2-1b", "program": program, **changed})


def abstract(work: Workload, axes: dict[str, int] = MESH) -> AbstractCall:
    mesh = ps.make_mesh(axes, jax.devices()[:4])
    return training_call(work, mesh) if work.program == "train" else inference_call(work, mesh)


@pytest.mark.parametrize(
    ("program", "expected"),
    [("synthesize", STEP), ("decode", STEP), ("workers", STEP), ("train", training_step.TRAIN)],
)
def test_is_the_program_that_runs(program: str, expected: object) -> None:
    found = abstract(asked(program)).call
    assert found.program is expected
    assert set(found.static) == set(found.program.static)


class TestAgainstARun:
    """Three workers and a synthesizer over branch=2, tensor=2, and the calls that are compiled for them."""

    @pytest.fixture(scope="class")
    @staticmethod
    def ran() -> list[ProgramCall]:
        synth = ps.ParallelSynthesis(tiny_model(mlp_width=MLP), mesh=ps.make_mesh(MESH, jax.devices()[:4]))
        synth.set_mapper(random_mapper(1))
        found = list[ProgramCall]()
        with pytest.MonkeyPatch.context() as patch:
            programs = synth.runner.programs
            run = programs.run

            def noted(call: ProgramCall) -> Any:
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), call.args)
                found.append(dataclasses.replace(call, args=shapes))
                return run(call)

            patch.setattr(programs, "run", noted)
            branches = synth.work([token_ids(1, 5), token_ids(2, 6), token_ids(3, 4)], max_new_tokens=3)
            synth.synthesize(token_ids(4, 5), branches, max_new_tokens=2)
        return [call for call in found if call.program is STEP]

    @pytest.fixture
    def proved(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setitem(PRESETS, "tiny", Preset(tiny_config(mlp_width=MLP), "none"))
        sizes = {"branches": 3, "branch_tokens": 3, "prompt_tokens": 5, "new_tokens": 2, "dtype": "float32", "rank": 0}
        return lambda program: abstract(asked(program, model="tiny", **sizes))

    # Three workers have 8 rows, and their prompts are read first: two of them on one block.
    @pytest.mark.parametrize(("program", "number"), [("workers", 2), ("synthesize", -2), ("decode", -1)])
    def test_the_same_input(self, ran: list[ProgramCall], proved: Any, program: str, number: int) -> None:
        here, there = ran[number], proved(program).call
        for name in ("layout", "row_axes"):
            assert here.static[name] == there.static[name]
        ours, structure = jax.tree.flatten(here.args)
        theirs, other_structure = jax.tree.flatten(there.args)
        assert structure == other_structure  # type: ignore[operator]
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            is_pool = len(one.shape) == 5 and one.shape[3] > 64
            drop = (lambda shape: shape[:3] + shape[4:]) if is_pool else tuple  # the pool's slots
            assert drop(one.shape) == drop(other.shape)

    def test_results_lie_where_those_of_a_run_do(self, ran: list[ProgramCall], proved: Any) -> None:
        found = proved("decode")
        assert STEP.out_shardings is not None
        here = STEP.out_shardings(found.model, *ran[-1].args, **ran[-1].static)
        there = STEP.out_shardings(found.model, *found.call.args, **found.call.static)
        assert jax.tree.map(lambda x: x.spec, here) == jax.tree.map(lambda x: x.spec, there)


class TestPool:
    @pytest.mark.parametrize(
        ("program", "axes", "slots"),
        [
            # Three of five branches of 200 tokens on a block, two pages each; prompt 100 and answer 60: two pages.
            ("decode", MESH, (6 * PAGE, 2 * PAGE)),
            ("synthesize", {"tensor": 4}, (10 * PAGE, 2 * PAGE)),
            # Another part of `data` has nothing of this question.
            ("decode", {"data": 2, "branch": 2}, (6 * PAGE, 2 * PAGE)),
            ("workers", MESH, (6 * PAGE, PAGE)),
        ],
    )
    def test_has_whole_pages_for_the_fullest_block(self, program: str, axes: dict[str, int], slots: tuple[int, int]) -> None:
        work = asked(program, branches=5, branch_tokens=200, prompt_tokens=100, new_tokens=60)
        found = abstract(work, axes)
        assert slots_of_a_block(work, ps.make_mesh(axes, jax.devices()[:4])) == slots
        assert (found.branch_slots, found.cache.slots) == (slots[0], sum(slots))
        assert found.cache.rows == axes.get("data", 1) * axes.get("branch", 1)

    def test_bytes_of_a_device(self) -> None:
        work = asked("decode", branches=2, branch_tokens=127, prompt_tokens=100, new_tokens=28)
        found = abstract(work)
        a_token = 2 * work.config.layers * work.config.kv_heads // 2 * work.config.head_width * 2
        assert found.cache_bytes == 2 * PAGE * a_token
        assert found.branch_bytes == PAGE * a_token

    def test_rows_are_sharded_as_the_scheduler_finds_it(self) -> None:
        for program, axes, expected in [
            ("decode", MESH, ("data",)),
            ("decode", {"tensor": 4}, ("data", "branch")),
            ("workers", MESH, ("data", "branch")),
        ]:
            assert abstract(asked(program), axes).call.static["row_axes"] == expected
