"""What the library says of its work through `logging`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import psynth_jax as ps
from tests.tiny import tiny_model, token_ids


def test_of_models_programs_and_branches(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO, "psynth_jax")
    ps.load_model("tiny-random")
    synth = ps.ParallelSynthesis(tiny_model(layers=1))
    branches = synth.encode([token_ids(1, 3)])
    branches.save(tmp_path / "b")
    ps.Branches.load(tmp_path / "b")
    said = caplog.messages
    assert any(line.startswith("loaded tiny-random as float32 in ") and "bytes of weights" in line for line in said)
    compiled = [line for line in said if line.startswith("compiled ")]
    assert len(compiled) == len(synth.runner.programs)
    assert any(line.startswith("compiled step for ") for line in compiled)
    assert f"saved {branches!r} to {tmp_path / 'b'}" in said
    assert any(line.startswith("loaded Branches(1 branches") for line in said)
    assert {record.name.split(".")[0] for record in caplog.records if "psynth" in record.name} == {"psynth_jax"}
    caplog.clear()
    synth.encode([token_ids(2, 3)])
    assert caplog.messages == [], "nothing is compiled twice, and nothing else is said"


def test_says_nothing_unless_it_is_asked_to() -> None:
    script = "import logging, psynth_jax; psynth_jax.load_model; logging.getLogger('psynth_jax.x').warning('not shown')"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=os.environ)
    assert "not shown" not in done.stderr
