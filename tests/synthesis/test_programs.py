"""Compiled programs that outlive a process, and what the library says of its work through `logging`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import psynth_jax as ps
from psynth_jax.errors import ConfigError, InputError
from tests.tiny import tiny_model, token_ids

SCRIPT = """
import sys, jax
jax.jit(lambda x: x + 1)(1)  # JAX has looked for a folder before there is one
import psynth_jax as ps
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
assert str(ps.keep_compiled_programs(sys.argv[1])) == sys.argv[1]
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if "cache_hit" in name else None)
print(ps.ParallelSynthesis(ps.load_model("tiny-random")).synthesize([1, 2, 3], max_new_tokens=2).token_ids, len(hits))
"""


@pytest.fixture
def settings() -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_another_process_compiles_nothing_again(tmp_path: Path) -> None:
    def run() -> list[str]:
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "kept")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rsplit(" ", 1)

    (first, hits), (second, more) = run(), run()
    assert first == second
    assert any((tmp_path / "kept").glob("jit_advance*-cache"))
    assert int(more) >= int(hits) + 2, "the prompt's step and the decode step come from the folder"


@pytest.mark.usefixtures("settings")
class TestFolder:
    def test_is_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert ps.keep_compiled_programs(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
        assert (tmp_path / "a" / "b").is_dir()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")
        monkeypatch.setenv("PSYNTH_CACHE", str(tmp_path / "cache"))
        assert ps.keep_compiled_programs() == tmp_path / "cache" / "compiled"

    def test_that_cannot_be_is_refused_if_it_was_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("x")
        before = jax.config.jax_compilation_cache_dir
        for wrong in (tmp_path / "file", tmp_path / "file" / "in", "a\0b", 7, b"x"):
            with pytest.raises(InputError) as caught:
                ps.keep_compiled_programs(wrong)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
        monkeypatch.setenv("PSYNTH_CACHE", str(tmp_path / "file"))
        assert ps.keep_compiled_programs() is None
        monkeypatch.delenv("PSYNTH_CACHE")

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nobody)
        assert ps.keep_compiled_programs() is None
        assert jax.config.jax_compilation_cache_dir == before


class TestLogging:
    def test_of_models_programs_and_branches(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        caplog.set_level(logging.INFO, "psynth_jax")
        ps.load_model("tiny-random")
        synth = ps.ParallelSynthesis(tiny_model(layers=1))
        branches = synth.encode([token_ids(1, 3)])
        branches.save(tmp_path / "b")
        ps.Branches.load(tmp_path / "b")
        said = caplog.messages
        assert any(line.startswith("loaded tiny-random as float32 in ") and "bytes of weights" in line for line in said)
        compiled = [line for line in said if line.startswith("compiled ")]
        assert len(compiled) == len(synth.engine._compiled)
        assert any(line.startswith("compiled advance for ") and "int32[1, 8]" in line for line in compiled)
        assert f"saved {branches!r} to {tmp_path / 'b'}" in said
        assert any(line.startswith("loaded Branches(1 branches") for line in said)
        assert {record.name.split(".")[0] for record in caplog.records if "psynth" in record.name} == {"psynth_jax"}
        caplog.clear()
        synth.encode([token_ids(2, 3)])
        assert caplog.messages == [], "nothing is compiled twice, and nothing else is said"

    def test_says_nothing_unless_it_is_asked_to(self) -> None:
        script = "import logging, psynth_jax; psynth_jax.load_model; logging.getLogger('psynth_jax.x').warning('not shown')"
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=os.environ)
        assert "not shown" not in done.stderr


class TestDtypes:
    @pytest.mark.parametrize(
        ("given", "name"),
        [
            (jnp.bfloat16, "bfloat16"),
            (np.float32, "float32"),
            (np.dtype("float16"), "float16"),
            (jnp.dtype("bfloat16"), "bfloat16"),
            (jnp.float16, "float16"),
            ("bfloat16", "bfloat16"),
        ],
    )
    def test_are_taken_as_they_are_written(self, given: Any, name: str) -> None:
        assert ps.load_model("tiny-random", dtype=given).decoder.dtype.name == name

    @pytest.mark.parametrize(
        "wrong", ["bf16", "int8", np.int32, np.float64, float, None, 7, b"float32", object(), [], "f4,f4"]
    )
    def test_others_are_named(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match=r"^dtype .*float32, bfloat16, float16") as caught:
            ps.load_model("tiny-random", dtype=wrong)
        assert "\n" not in str(caught.value)
