"""What `psynth compile` compiles is what runs: the same programs, with all their static arguments."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import psynth_jax as ps
from psynth_jax.compiling.program import AbstractCall, inference_call
from psynth_jax.compiling.train_program import training_call
from psynth_jax.compiling.workload import workload
from psynth_jax.engine.programs import ProgramCall
from psynth_jax.synthesis import step as synthesis_step
from psynth_jax.training import step as training_step
from tests.tiny import tiny_model, token_ids

MESH = {"branch": 2, "tensor": 2}


def abstract(program: str) -> AbstractCall:
    asked: dict[str, Any] = {"topology": "v5e-4", "model": "llama-3.2-1b", "program": program}
    mesh = ps.make_mesh(MESH, jax.devices()[:4])
    work = workload(asked)
    return training_call(work, mesh) if program == "train" else inference_call(work, mesh)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("synthesize", synthesis_step.ADVANCE),
        ("decode", synthesis_step.ADVANCE),
        ("workers", synthesis_step.ADVANCE),
        ("train", training_step.TRAIN),
    ],
)
def test_is_the_program_that_runs(program: str, expected: object) -> None:
    found = abstract(program).call
    assert found.program is expected
    assert set(found.static) == set(found.program.static)


def test_results_lie_where_those_of_a_run_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The own cache's shardings, of a decode step with shapes and of one that runs."""
    synth = ps.ParallelSynthesis(tiny_model(mlp_width=32), mesh=ps.make_mesh(MESH, jax.devices()[:4]))
    programs, ran = synth.engine.programs, list[ProgramCall]()
    run = programs.run

    def noted(call: ProgramCall) -> Any:
        ran.append(call)
        return run(call)

    monkeypatch.setattr(programs, "run", noted)
    synth.synthesize(token_ids(1, 5), max_new_tokens=2)
    call = next(call for call in ran if call.program is synthesis_step.ADVANCE)
    proved = abstract("decode")
    assert proved.call.program.out_shardings is not None
    here = call.program.out_shardings(programs.model, *call.args, **call.static)
    there = proved.call.program.out_shardings(proved.model, *proved.call.args, **proved.call.static)
    assert jax.tree.map(lambda x: x.spec, here) == jax.tree.map(lambda x: x.spec, there)
