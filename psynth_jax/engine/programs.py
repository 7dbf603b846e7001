"""Compiled programs: what is compiled, by whom and when, how long it took, and how many are held.

    Program       a function, and how `jax.jit` takes it: data, kept in the module of the function
    ProgramCall   a program with arguments, or with shapes in their place
    Programs      their only owner: lowers, compiles, holds and runs them

Inference, training and `psynth compile` use the same `Programs`, so that what is proved of a step
for a slice that is not there is proved of the step that runs.

Where JAX keeps compiled programs on disk (`keep_compiled_programs`, `JAX_COMPILATION_CACHE_DIR`),
these are read from there and written there; nothing is written where nobody asked for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax
import numpy as np

from psynth_jax.engine import memory_maps
from psynth_jax.errors import MemoryLimitError, is_out_of_memory
from psynth_jax.nn.decoder import Decoder
from psynth_jax.sharding import in_one_order

Executable: TypeAlias = Callable[..., Any]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function of a model and arrays, and how it is compiled.

    Attributes:
      function: takes the model first, then arrays by position, then static arguments by name.
      static: names of the arguments that are compiled in.
      donated: names of the arguments whose memory the results take.
      out_shardings: from the arguments of `function` to where its results lie on the model's mesh;
        called for a model on a mesh only.
      less_memory: what to change where a device has not enough memory, to follow "use".
    """

    function: Callable[..., Any]
    static: tuple[str, ...] = ()
    donated: tuple[str, ...] = ()
    out_shardings: Callable[..., Any] | None = None
    less_memory: str = "less at once, or dtype bfloat16"


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramCall:
    """A program with all its arguments but the model.

    Attributes:
      args: arrays, or `jax.ShapeDtypeStruct`s where it is only compiled.
      static: by name.
      words: what it is, for people; empty: the function's name and all shapes.
    """

    program: Program
    args: tuple[Any, ...]
    static: Mapping[str, Any]
    words: str = ""

    @property
    def key(self) -> Hashable:
        """What one compiled program serves: function, static arguments, structure and shapes.

        Shardings are no part of it: where arguments lie follows from their structure, since a
        cache says how it is placed.
        """
        leaves, structure = jax.tree.flatten(self.args)
        shapes = tuple((np.shape(x), x.dtype) for x in leaves)
        return self.program, structure, shapes, tuple(self.static.items())

    def described(self) -> str:
        """Say what it is, in words or in shapes."""
        if self.words:
            return self.words
        shapes = [f"{x.dtype}{list(np.shape(x))}" for x in jax.tree.leaves(self.args)]
        options = [f"{name}={value}" for name, value in self.static.items()]
        return " ".join([self.program.function.__name__, "for", *shapes, *options])


class _Held:
    """A program that was asked for; `executable` is None until it is compiled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executable: Executable | None = None
        self.future: Future[Any] | None = None


class Programs:
    """Compiles programs of one model once for every set of shapes, holds them, and runs them.

    Threads may share one: a program is compiled by the first thread that asks for it while those
    that want the same one wait; others are compiled at the same time.

    Attributes:
      model: every program's first argument, or its shapes where nothing is to run.
      compilations: how many programs were compiled.
      compile_seconds: how long that took, all of them together.
    """

    def __init__(self, model: Decoder, say: Callable[[str], None] = _log.info):
        """Begin with no program.  say: told what is compiled."""
        self.model = model
        self.compilations, self.compile_seconds = 0, 0.0
        self._say = say
        self._held: dict[Hashable, _Held] = {}
        self._lock = threading.Lock()
        self._forgetting = threading.Lock()
        self._maps_left = 0
        self._waited = threading.local()
        self._threads = ThreadPoolExecutor(os.cpu_count())  # no thread starts before it has work
        self._closed = False

    def __len__(self) -> int:
        """How many compiled programs are held."""
        with self._lock:
            held = list(self._held.values())
        return sum(each.executable is not None for each in held)

    @property
    def waited(self) -> float:
        """Seconds for which this thread compiled, or waited for another that did."""
        return getattr(self._waited, "seconds", 0.0)

    def set_waited(self, seconds: float) -> None:
        """Let `waited` count what this thread waited for while another one drove its sequences."""
        self._waited.seconds = seconds

    def now(self) -> float:
        """Return a clock's seconds without those of `waited`.

        Only differences of two readings by the same thread mean something; they are never negative.
        """
        return time.perf_counter() - self.waited

    def traced(self, call: ProgramCall) -> jax.stages.Traced:
        """Trace a call with the options that it is compiled with."""
        program, mesh = call.program, self.model.mesh
        options: dict[str, Any] = {}
        if mesh is not None and program.out_shardings is not None:
            options["out_shardings"] = program.out_shardings(self.model, *call.args, **call.static)
        jitted = jax.jit(
            program.function,
            static_argnames=program.static,
            donate_argnames=program.donated,
            **options,
        )
        return jitted.trace(self.model, *call.args, **call.static)

    def lower(self, call: ProgramCall, traced: jax.stages.Traced | None = None) -> jax.stages.Lowered:
        """Lower a call for the devices that the model lies on; traced: what `traced` returned for it."""
        return (traced or self.traced(call)).lower()

    def is_there(self, call: ProgramCall) -> bool:
        """Whether a program is held, so that it can run at once."""
        with self._lock:
            held = self._held.get(call.key)
        return held is not None and held.executable is not None

    def get(self, call: ProgramCall, traced: jax.stages.Traced | None = None) -> Any:
        """Return a compiled program; compile it, or wait for the thread that does, if need be.

        traced: what `traced` returns for it.  Raises `MemoryLimitError` for a program that the device has not enough
        memory for.
        """
        held, _ = self._asked_for(call)
        if held.executable is not None:
            return held.executable
        begin = time.perf_counter()
        try:
            if held.lock.locked():
                self._say(f"waiting for {call.described()} to be compiled ...")
            with held.lock:
                if held.executable is None:
                    held.executable = self._compiled(call, traced)
            return held.executable
        finally:
            self._waited.seconds = self.waited + time.perf_counter() - begin

    def compile_ahead(self, calls: Iterable[ProgramCall]) -> None:
        """Begin to compile what is not held, several at the same time; return when it is traced.

        What goes wrong is raised when the program is asked for.
        """
        for call in calls:
            _, is_new = self._asked_for(call)
            if is_new and not self._closed:
                self.begin(call)

    def begin(self, call: ProgramCall) -> Future[Any]:
        """Begin to get a program, and return its future when it is traced.

        Traced by this thread, whose settings of JAX may hold for it alone.
        """
        held, _ = self._asked_for(call)
        future = held.future
        if future is None or (future.done() and future.exception() is not None):
            future = held.future = self._begun(call)
        return future

    def _begun(self, call: ProgramCall) -> Future[Any]:
        found: Future[Any] = Future()
        try:
            traced = self.traced(call)
        except Exception as error:  # noqa: BLE001  the future keeps it, as a thread's would
            found.set_exception(error)
            return found
        try:
            return self._threads.submit(self.get, call, traced)
        except RuntimeError:  # this owner was closed, or the interpreter ends: no thread begins any more
            found.set_result(self.get(call, traced))
            return found

    def run(self, call: ProgramCall) -> Any:
        """Run a program and return its results, compiling it first for shapes that are new.

        Raises `MemoryLimitError` where the device has not enough memory.
        """
        executable = self.get(call)
        with in_one_order(self.model.mesh is not None), _saying_what_takes_less_memory(call.program):
            return executable(self.model, *call.args)

    def close(self) -> None:
        """Begin nothing more ahead; what has not begun is compiled when it is asked for."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _asked_for(self, call: ProgramCall) -> tuple[_Held, bool]:
        """Return the place of a program, and whether it was made for this call."""
        key = call.key
        with self._lock:
            held = self._held.pop(key, None)
            is_new = held is None
            held = self._held[key] = held or _Held()  # the last one of them now
        return held, is_new

    def _compiled(self, call: ProgramCall, traced: jax.stages.Traced | None = None) -> Executable:
        """Compile a call; traced: by another thread."""
        begin, described = time.perf_counter(), call.described()
        self._say(f"compiling {described} ...")
        self._make_room()
        with _saying_what_takes_less_memory(call.program):
            executable = self.lower(call, traced).compile()
        seconds = time.perf_counter() - begin
        with self._lock:
            self.compilations += 1
            self.compile_seconds += seconds
        self._say(f"compiled {described} in {seconds:.2f} s")
        return executable

    def _make_room(self) -> None:
        """Where memory maps are scarce, let half of the programs go: those least recently used.

        JAX holds every program, too, so all that this process has compiled is forgotten with them.
        """
        with self._forgetting:
            if not memory_maps.are_scarce(self._maps_left):
                return
            with self._lock:
                there = [key for key, held in self._held.items() if held.executable is not None]
                for key in there[: (len(there) + 1) // 2]:
                    del self._held[key]
            jax.clear_caches()
            gc.collect()
            self._maps_left = memory_maps.taken()
            self._say("memory maps are scarce: half of the compiled programs were let go")


@contextlib.contextmanager
def _saying_what_takes_less_memory(program: Program) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        told = f"the device has not enough memory for this call: use {program.less_memory}"
        raise MemoryLimitError(told) from None
