"""Compiled programs that outlive a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import psynth_jax as ps
from psynth_jax.errors import InputError

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
    assert any((tmp_path / "kept").glob("jit_step*-cache"))
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
