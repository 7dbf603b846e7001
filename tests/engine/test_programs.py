"""The owner of compiled programs: what is compiled, how often, by which thread, and what is held."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from psynth_jax.engine import memory_maps
from psynth_jax.engine.programs import Program, ProgramCall, Programs
from psynth_jax.errors import MemoryLimitError
from psynth_jax.nn.decoder import Decoder
from psynth_jax.sharding import make_mesh, replicated
from tests.tiny import tiny_config, tiny_decoder, tiny_model


def scaled(model: Decoder, values: Any, *, times: int) -> Any:
    return values * times


SCALED = Program(scaled, static=("times",), less_memory="shorter values")


def call(length: int, times: int = 2, words: str = "") -> ProgramCall:
    return ProgramCall(SCALED, (np.ones(length, np.float32),), {"times": times}, words)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def programs(said: list[str]) -> Programs:
    return Programs(tiny_decoder(tiny_config(layers=1)), said.append)


class TestOnce:
    def test_for_every_shape_and_static_argument(self, programs: Programs, said: list[str]) -> None:
        for length, times, found in [(3, 2, 1), (3, 2, 1), (4, 2, 2), (3, 5, 3), (4, 2, 3)]:
            assert programs.run(call(length, times)).tolist() == [times] * length
            assert (programs.compilations, len(programs)) == (found, found)
        assert programs.compile_seconds > 0
        assert [line for line in said if line.startswith("compiling ")] == [
            "compiling scaled for float32[3] times=2 ...",
            "compiling scaled for float32[4] times=2 ...",
            "compiling scaled for float32[3] times=5 ...",
        ]

    def test_shapes_alone_are_compiled_for(self, programs: Programs) -> None:
        shape = jax.ShapeDtypeStruct((3,), np.float32)
        abstract = ProgramCall(SCALED, (shape,), {"times": 2}, "the tripled one")
        assert not programs.is_there(abstract)
        programs.get(abstract)
        assert programs.is_there(abstract) and programs.is_there(call(3))
        programs.run(call(3))
        assert programs.compilations == 1

    def test_again_where_memory_maps_were_scarce(self, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that were not used for the longest go, from JAX's caches too; they are compiled when needed."""
        for length in (1, 2, 3, 1):
            programs.run(call(length))
        gone, kept = (weakref.ref(programs.get(call(length))) for length in (2, 1))
        programs.run(call(1))
        monkeypatch.setattr(memory_maps, "limit", lambda: 1000)
        monkeypatch.setattr(memory_maps, "taken", lambda: 501)
        programs.run(call(4))
        gc.collect()  # in a process with many objects one collection does not always do
        assert gone() is None and kept() is not None
        assert (programs.compilations, len(programs)) == (4, 2)
        programs.run(call(5))  # maps that others hold make nothing go
        assert (programs.compilations, len(programs)) == (5, 3)
        monkeypatch.setattr(memory_maps, "taken", lambda: 602)
        programs.run(call(2))
        assert (programs.compilations, len(programs)) == (6, 2)

    def test_when_it_is_asked_for_where_no_thread_takes_work(self, programs: Programs) -> None:
        programs.close()
        programs.compile_ahead([call(3)])
        assert len(programs) == 0
        assert len(programs.run(call(3))) == 3

    def test_by_one_of_the_threads_that_want_it(self, programs: Programs, said: list[str]) -> None:
        start = threading.Barrier(4)

        def ask(number: int) -> Any:
            start.wait(60)
            return programs.run(call(3 + number % 2))

        with ThreadPoolExecutor(4) as pool:
            found = [*pool.map(ask, range(4))]
        assert [len(each) for each in found] == [3, 4, 3, 4]
        assert programs.compilations == 2


@pytest.fixture
def held_back(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Hold compilations of three numbers back until the function that this returns is called."""
    lower, go = programs.lower, threading.Event()

    def later(wanted: ProgramCall, *traced: Any) -> Any:
        if wanted.args[0].shape == (3,):
            assert go.wait(60)
        return lower(wanted, *traced)

    monkeypatch.setattr(programs, "lower", later)
    return go.set


class TestThreads:
    def test_another_program_does_not_wait(self, programs: Programs, held_back: Callable[[], None]) -> None:
        other = threading.Thread(target=programs.run, args=(call(3),))
        other.start()
        assert programs.run(call(4)).shape == (4,)
        assert other.is_alive()
        held_back()
        other.join(60)
        assert programs.is_there(call(3))

    def test_a_clock_leaves_out_what_is_waited_for(
        self, programs: Programs, said: list[str], held_back: Callable[[], None]
    ) -> None:
        programs.compile_ahead([call(3, words="three numbers")])
        timer = threading.Timer(0.5, held_back)
        begin = programs.now()
        timer.start()
        programs.run(call(3, words="three numbers"))
        assert programs.waited > 0.4 > programs.now() - begin >= 0
        assert programs.compilations == 1
        assert said[:2] == [
            "compiling three numbers ...",
            "waiting for three numbers to be compiled ...",
        ]

    def test_several_are_compiled_ahead(self, programs: Programs) -> None:
        calls = [call(length) for length in (5, 6, 6)]
        programs.compile_ahead(calls)
        for each in calls:
            programs.get(each)
        assert programs.compilations == 2
        programs.close()

    def test_what_was_not_begun_is_compiled_when_it_is_asked_for(
        self, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.cpu_count", lambda: 1)
        programs = Programs(tiny_decoder(tiny_config(layers=1)), said.append)
        lower, begun, go = programs.lower, threading.Event(), threading.Event()

        def later(wanted: ProgramCall, *traced: Any) -> Any:
            if wanted.args[0].shape == (3,):
                begun.set()
                assert go.wait(60)
            return lower(wanted, *traced)

        monkeypatch.setattr(programs, "lower", later)
        programs.compile_ahead([call(3), call(4)])
        assert begun.wait(60)
        programs.close()
        go.set()
        programs.get(call(3))
        assert programs.is_there(call(3)) and not programs.is_there(call(4))
        assert programs.run(call(4)).shape == (4,)

    def test_what_goes_wrong_ahead_is_raised_when_it_is_asked_for(self, programs: Programs) -> None:
        def wrong(model: Decoder, values: Any) -> Any:
            raise ZeroDivisionError("a bug")

        bad = ProgramCall(Program(wrong), (np.ones(3),), {})
        programs.compile_ahead([bad])
        with pytest.raises(ZeroDivisionError, match="a bug"):
            programs.run(bad)
        assert not programs.is_there(bad)
        programs.close()


class TestOptions:
    def test_a_donated_argument_is_written_in_place(self, programs: Programs) -> None:
        def added(model: Decoder, state: Any, more: Any) -> Any:
            return state + more

        state, more = jnp.zeros(1000), jnp.ones(1000)
        wanted = ProgramCall(Program(added, donated=("state",)), (state, more), {})
        assert programs.get(wanted).memory_analysis().alias_size_in_bytes == state.nbytes
        assert programs.run(wanted).tolist() == [1] * 1000
        assert state.is_deleted() and not more.is_deleted()

    def test_results_lie_where_the_program_says(self) -> None:
        mesh = make_mesh({"branch": 2}, jax.devices()[:2])
        model = tiny_model(layers=1).on(mesh).decoder

        def out_shardings(model: Decoder, values: Any, *, times: int) -> Any:
            assert times == 2 and model.mesh is not None
            return replicated(model.mesh)

        whole = Program(scaled, static=("times",), out_shardings=out_shardings)
        found = Programs(model).run(ProgramCall(whole, (np.ones(4, np.float32),), {"times": 2}))
        assert found.sharding.is_equivalent_to(replicated(mesh), 1)


class TestMemory:
    @pytest.mark.parametrize("ends", ["lower", "get"], ids=["compiling", "running"])
    def test_too_little_says_what_to_use(self, programs: Programs, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
        def full(*_: Any) -> Any:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")

        monkeypatch.setattr(programs, ends, full if ends == "lower" else lambda _: full)
        with pytest.raises(MemoryLimitError, match=r"use shorter values$"):
            programs.run(call(3))

    def test_other_errors_of_a_device_stay_what_they_are(self, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> Any:
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

        monkeypatch.setattr(programs, "get", lambda _: broken)
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            programs.run(call(3))


def test_a_folder_that_jax_was_told_of_is_used(tmp_path: Path) -> None:
    """A second owner, as in another process, compiles nothing: the folder has the program."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    hits: list[str] = []
    listener = lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None  # noqa: E731
    jax.monitoring.register_event_listener(listener)
    try:
        for _ in range(2):
            Programs(tiny_decoder(tiny_config(layers=1))).run(call(7))
            jax.clear_caches()
        assert [path.name for path in tmp_path.glob("jit_scaled*-cache")] and hits
    finally:
        jax.monitoring.unregister_event_listener(listener)
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
