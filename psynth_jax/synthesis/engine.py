"""Requests come and go: workers and synthesizers of any questions share the steps of one engine.

    with ps.Engine(model, adapter) as engine:
        workers = [engine.submit(ps.Request(prompt, keep=True)) for prompt in prompts]
        branches = ps.Branches.join(*(worker.branch for worker in workers))
        print(engine.submit(ps.Request(question, branches)).result().text)

Nothing runs by itself: `step`, `Handle.result` and `run` drive the engine in the thread that calls
them, `stream` in a thread of its own for as long as anybody reads one.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import itertools
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from jax.sharding import Mesh

from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.errors import EngineError, InputError, shown
from psynth_jax.model import Model
from psynth_jax.nn.adapter import Lora
from psynth_jax.prompts import question_messages, synthesis_messages
from psynth_jax.synthesis import inputs
from psynth_jax.synthesis.handles import Handle, Way
from psynth_jax.synthesis.outputs import RowOutput
from psynth_jax.synthesis.pipeline import ParallelSynthesis
from psynth_jax.synthesis.precompile import precompile
from psynth_jax.synthesis.requests import Event, Request, RequestResult, checked_request
from psynth_jax.synthesis.runner import asked_of
from psynth_jax.synthesis.sampling import checked_seed, is_whole, sampling_of
from psynth_jax.synthesis.streams import StreamDriver, cancel_submitted, tell
from psynth_jax.template_variables import TemplateVariables

__all__ = ["Engine", "Handle"]

MOST_UNTOLD = 1024  # requests that have ended whose events are kept for `Engine.step`


class Engine:
    """A model that answers many requests at once.  Threads may share one.

    Args:
      model: from `load_model`.
      adapter: as for `ParallelSynthesis`.
      pool_tokens: slots of a pool of its own, which never grows: all prompts, answers and kept
        branches that are there at one time fit into it.  None: the pool of all that read this
        model, which grows on a CPU and has half of the free memory elsewhere.  With a 135M model on
        a laptop None is right; on a card of 16 GB with a 7B model in bfloat16 some 16,384 are left.
      max_batch: requests that run at the same time; others wait.  64 is the largest step that is
        compiled; fewer give each of them more tokens a second.
      max_branches: that a request may read.  Up to 8 and up to 32 are two sets of programs.
      cache_dtype: as for `ParallelSynthesis`; "int8" makes room for nearly twice as many tokens as
        bfloat16.
      mesh, template: as for `ParallelSynthesis`.

    Raises:
      InputError: a number below 1.
      Others as `ParallelSynthesis` does.
    """

    def __init__(
        self,
        model: Model,
        adapter: str | Path | Adapter | Lora | None = None,
        pool_tokens: int | None = None,
        max_batch: int = 64,
        max_branches: int = 8,
        cache_dtype: str | None = None,
        mesh: Mesh | None = None,
        template: TemplateVariables | None = None,
    ):
        """Set up; nothing is compiled before the first request, or `precompile`."""
        for name, value in (("max_batch", max_batch), ("max_branches", max_branches)):
            if not is_whole(value) or value < 1:
                raise InputError(f"{name} is {shown(value)}; it must be a whole number of at least 1")
        self.synth = ParallelSynthesis(
            model, adapter, cache_dtype=cache_dtype, mesh=mesh, template=template, pool_tokens=pool_tokens
        )
        self.max_batch, self.max_branches = max_batch, max_branches
        self._lock = threading.Lock()  # nothing that waits is done under it
        self._numbers = itertools.count()
        self._held_back: collections.deque[Way] = collections.deque()
        self._running: dict[int, Way] = {}
        self._untold: dict[int, list[Event]] = {}  # of the last requests that have ended
        self._kept: weakref.WeakSet[Any] = weakref.WeakSet()  # leases of branches
        self._closed = False
        self._driver = StreamDriver(self)

    def __enter__(self) -> Engine:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        with self._lock:
            return bool(self._held_back or self._running)

    def submit(self, request: Request) -> Handle:
        """Let a request wait for its turn.

        Raises:
          EngineError: the engine was closed, or has no memory any more.
          InputError: an empty prompt, or more branches than `max_branches`.
          ContextLengthError: branches, prompt and answer do not fit the context window.
          ModelMismatchError: the branches were made by another model.
          MemoryLimitError: the branches' keys and values are lost, or there is no room to copy those
            of a file or of another pool.
        """
        return self._submit(request, None)

    def step(self) -> list[Event]:
        """Run one step; return what happened to the requests since the last one."""
        if self.busy:
            self.advance()
        with self._lock:
            handles = [way.handle for way in self._running.values()]
            events = list(itertools.chain.from_iterable(self._untold.values()))
            self._untold = {}
        for handle in handles:
            if handle.tell is None:
                events += handle.take_events()
        return events

    def run(self, requests: Iterable[Request]) -> list[RequestResult]:
        """Return the results of some requests, when all of them have ended.

        Raises what made the first of those fail that failed; to know each of them, use `submit`.
        """
        handles: list[Handle] = []
        try:
            for request in requests:
                handles.append(self.submit(request))
            for handle in handles:
                while not handle.done:
                    self.advance()
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
                self.forget_events(handle.id)

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """Submit a request, and yield its events; a thread drives the engine meanwhile.

        A reader that leaves cancels the request.  Raises as `submit` does, what made the request
        fail, and `InputError` where another event loop is reading streams of this engine.
        """
        if self.synth.runner.pool.over_processes:
            raise InputError("the model lies on several processes, which take the same steps in the same order: use run")
        loop = asyncio.get_running_loop()
        news = asyncio.Event()
        with self._driver.reading(loop, news):
            # It may encode a sink, or copy branches into the pool: the loop goes on meanwhile.
            submitting = loop.run_in_executor(None, self._submit, request, functools.partial(tell, loop, news))
            try:
                handle = await asyncio.shield(submitting)
            except asyncio.CancelledError:  # the reader left, but the thread goes on
                submitting.add_done_callback(cancel_submitted)
                raise
            self._driver.wake()
            try:
                while True:
                    await news.wait()
                    news.clear()
                    self._driver.check()
                    for event in handle.take_events():
                        if event.error is not None:
                            raise event.error
                        yield event
                        if event.kind == "end":
                            return
            finally:
                handle.cancel()

    def precompile(self, say: Callable[[str], None] | None = None) -> float:
        """Compile all programs that requests of up to `max_branches` branches and `max_batch` rows need.

        Those that read caches in many pieces, as of a pool that is full, have programs of their
        own, compiled when they come.
        say: told of each; None: a progress bar on stderr, where that is a terminal.  Returns the
        seconds that it took.
        """
        return precompile(self.synth.runner, self.max_branches, self.max_batch, say)

    def stats(self) -> dict[str, int | float]:
        """Return counts: of now, and since the engine (or the pool that it shares) began.

        running, waiting: requests of this engine.  pool_tokens: slots of the pool.  used_tokens:
        held by sequences and by branches that somebody keeps; prefix_tokens: kept for sharing
        alone, free when they are needed; branch_tokens: of the branches that this engine's requests
        kept and that are still there.
        prefill_tokens, decode_tokens: that were run; prefix_hit_tokens: that were not, because they
        had been.  programs, compilations, compile_seconds; compactions, evictions, cancelled,
        failed.
        """
        with self._lock:
            admitted = [way.sequence.lease is not None for way in self._running.values()]
            running, waiting = admitted.count(True), len(self._held_back) + admitted.count(False)
            branch_tokens = sum(lease.slots for lease in self._kept)
        found = {"running": running, "waiting": waiting, "branch_tokens": branch_tokens}
        return found | self.synth.runner.counts()

    def close(self) -> None:
        """Cancel all requests and take no more.  Branches that were kept stay readable."""
        with self._lock:
            self._closed = True
            ways = [*self._held_back, *self._running.values()]
        for way in ways:
            self.cancel(way.handle.id)
        while self.busy:
            self.advance()
        self.synth.runner.forget_copies()

    def forget_events(self, request_id: int) -> None:
        """Tell nothing of a request that has ended: somebody has its result."""
        with self._lock:
            self._untold.pop(request_id, None)

    def advance(self) -> None:
        """Run a step, or wait until the thread that runs one has done so."""
        self.synth.runner.scheduler.advance()

    def cancel(self, request_id: int) -> None:
        """End a request; see `Handle.cancel`."""
        with self._lock:
            for way in self._held_back:
                if way.handle.id == request_id:
                    way.sequence.cancelled = True
                    self._running[request_id] = way
                    self._held_back.remove(way)
                    break
            running = self._running.get(request_id)
        if running is not None:
            self.synth.runner.scheduler.cancel(running.sequence)

    def _submit(self, request: Request, tell: Callable[[], None] | None) -> Handle:
        self._check_open()
        request = checked_request(request)
        handle = Handle(self, next(self._numbers), request, tell)
        way = self._way(handle)
        with self._lock:
            self._check_open()
            is_held_back = len(self._running) >= self.max_batch
            if is_held_back:
                self._held_back.append(way)
            else:
                self._running[handle.id] = way
        if not is_held_back:
            self._begin(way)
        return handle

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine was closed: make another one")

    def _way(self, handle: Handle) -> Way:
        """Return the sequence of a request, and what hears of its tokens."""
        synth, request, begin = self.synth, handle.request, time.perf_counter()
        model, runner, options = synth.model, synth.runner, request.options
        groups = synth.checked_groups(request.branches)
        if groups is not None and len(groups[0]) > self.max_branches + synth.sink.count:
            many = len(groups[0]) - synth.sink.count
            raise InputError(f"a request reads {many} branches; this engine was made for max_branches={self.max_branches}")
        wording = question_messages if groups is None else synthesis_messages
        ids = inputs.prompt_ids(model, request.prompt, "the prompt", wording)
        # Requests go round the parts of a mesh; those that read branches are run where most of
        # these are.
        (asked,) = asked_of(runner, groups, 1, home=handle.id % runner.machine.blocks)
        inputs.check_window(model, asked.position, len(ids), options.max_new_tokens, "the prompt")
        name = f"request {handle.id}"
        output = RowOutput(
            options,
            model.stop_ids,
            model.tokenizer,
            runner,
            name,
            append_last=request.keep,
            report=lambda piece: handle.hear(piece, way.since_begin(output.last_s)),
            at_once=True,
        )
        sampling = sampling_of(options, (checked_seed(request.seed), request.index))
        sequence = runner.sequence(
            ids,
            options.max_new_tokens,
            output,
            asked.block,
            draws=output.draws,
            sampling=dataclasses.replace(sampling, alternatives=request.logprobs),
            branches=asked.branches,
            kept=asked.kept,
            position=asked.position,
            scale=request.scale,
            salt=(request.salt,),
            on_end=lambda _: self._end(way),
        )
        way = Way(handle, sequence, output, asked.cached_tokens, begin)  # the callbacks above read it
        return way

    def _begin(self, way: Way) -> None:
        try:
            self.synth.runner.scheduler.submit(way.sequence)
        except BaseException as error:
            way.sequence.error = error
            self.synth.runner.scheduler.cancel(way.sequence)
            raise

    def _end(self, way: Way) -> None:
        """Note that a request has ended, and let those begin that were held back."""
        self._note_end(way)
        with self._lock:
            while self._held_back and len(self._running) < self.max_batch:
                first = self._held_back[0]
                self._running[first.handle.id] = first
                self._held_back.popleft()
            # Others, too: an interrupt may have come before they were submitted.
            ready = [each for each in self._running.values() if not each.sequence.submitted]
        for each in ready:
            with contextlib.suppress(EngineError):  # its handle raises it
                self._begin(each)

    def _note_end(self, way: Way) -> None:
        synth, handle = self.synth, way.handle
        if handle.done:
            return
        branch = handle.end(way, synth.model.tokenizer, synth.model.fingerprint)
        with self._lock:
            self._running.pop(handle.id, None)
            if branch is not None:
                self._kept.update(segment.held for segment in branch.questions[0][0].segments)
            if handle.tell is None:
                self._untold.setdefault(handle.id, []).extend(handle.take_events())
                if len(self._untold) > MOST_UNTOLD:  # nobody steps, or asks for results
                    del self._untold[next(iter(self._untold))]
        handle.say_that_it_ended()
