"""Sequences through a pool: against whole texts run again for every token, alone and in any company."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.buckets import Buckets
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.engine.scheduler import Scheduler
from psynth_jax.engine.sequences import BASE, SequenceSampling, SequenceState
from psynth_jax.errors import InputError, MemoryLimitError
from psynth_jax.sharding import make_mesh
from tests.engine import machines
from tests.engine.machines import (
    BUCKETS,
    CONFIG,
    V,
    Written,
    conditioning,
    greedy,
    prompt,
    scheduler,
    sequence,
    synthesizer,
    worker,
)
from tests.slow import exhaustive_but

SHARDED = CONFIG.model_copy(update={"heads": 8, "width": 32})  # what a mesh of eight devices divides
LENGTHS = (3, 17, 40, 1, 64, 90)


@pytest.fixture(autouse=True, params=[0, 1], ids=["at_once", "lag_one"])
def lag(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the device waits until the host knows its tokens: nothing else may depend on it."""
    monkeypatch.setattr(machines, "LAG", request.param)


def test_workers_write_what_whole_texts_say() -> None:
    engine = scheduler()
    workers = [worker(prompt(seed, length), limit=4 + seed) for seed, length in enumerate(LENGTHS)]
    engine.run([each.sequence for each in workers])
    for seed, each in enumerate(workers):
        tokens, logprobs = greedy(engine.programs.model, each.prompt, 4 + seed)
        assert each.written.tokens == tokens
        np.testing.assert_allclose(each.written.logprobs, logprobs, atol=1e-4)


def test_a_row_of_any_batch_is_the_row_alone() -> None:
    """Log-probabilities of drawn tokens, too: a row's key does not depend on its place."""
    sampling = [SequenceSampling(0.9, 0.95, 40, (7, number)) for number in range(len(LENGTHS))]
    engine = scheduler()
    together = [worker(prompt(n, length), 5, sampling=sampling[n]) for n, length in enumerate(LENGTHS)]
    engine.run([each.sequence for each in together])
    for number, each in enumerate(together):
        alone = worker(each.prompt, 5, sampling=sampling[number])
        engine.run([alone.sequence])
        assert alone.written.tokens == each.written.tokens
        np.testing.assert_allclose(alone.written.logprobs, each.written.logprobs, atol=2e-5)


def branches_of(engine: Any, lengths: tuple[int, ...] = (5, 9, 3)) -> tuple[list[Any], list[Any]]:
    workers = [worker(prompt(20 + n, 11 + n), limit=length) for n, length in enumerate(lengths)]
    engine.run([each.sequence for each in workers])
    pairs = [each.branch() for each in workers]
    return [read for read, _ in pairs], [lease for _, lease in pairs]


def answers(engine: Any, reads: list[Any], with_adapter: bool = True) -> Written:
    condition = conditioning(engine.programs.model) if with_adapter else BASE
    asked, written = synthesizer(prompt(50, 21), reads, condition)
    engine.run([asked])
    return written


def assert_same(found: Written, expected: Written, tolerance: float = 2e-5) -> None:
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=tolerance)


def test_free_slots_may_hold_anything() -> None:
    """Everything but what is leased is poisoned with NaN: nothing changes."""
    engine = scheduler()
    reads, leases = branches_of(engine)
    expected = answers(engine, reads)
    keep = np.zeros(engine.pool.allocator.slots, bool)
    for lease in leases:
        for run in lease.runs:
            keep[run.first : run.first + run.length] = True

    def poisoned(heads: jax.Array) -> jax.Array:
        return jnp.where(keep[:, None], heads, jnp.nan)

    engine.pool.replace(jax.tree.map(poisoned, engine.pool.heads))
    assert_same(answers(engine, reads), expected, 0.0)


def test_neighbours_stay_bitwise_as_they_were() -> None:
    """Padded chunks and idle rows write nothing outside of their own slots."""
    engine = scheduler()
    _, leases = branches_of(engine)
    before = jax.device_get(engine.pool.heads.k)
    new = [worker(prompt(70 + n, length), 3) for n, length in enumerate((1, 19, 66))]
    engine.run([each.sequence for each in new])
    after = jax.device_get(engine.pool.heads.k)
    for lease in leases:
        for run in lease.runs:
            slots = slice(run.first, run.first + run.length)
            np.testing.assert_array_equal(before[:, run.block, :, slots], after[:, run.block, :, slots])
    own: set[int] = set()
    for each in new:
        for run in each.sequence.lease.runs:
            own |= set(range(run.first, run.first + run.length))
    changed = np.flatnonzero((before != after).any(axis=(0, 1, 2, 4)))
    assert set(changed) <= own


def test_a_branch_outlives_its_worker_and_frees_its_pages() -> None:
    engine = scheduler()
    reads, leases = branches_of(engine)
    expected = answers(engine, reads)
    held = sum(lease.slots for lease in leases)
    assert held <= engine.pool.used_slots <= held + 16 * len(leases)
    assert_same(answers(engine, reads), expected, 0.0)
    del reads, leases
    assert engine.pool.used_slots == 0


def test_a_grown_pool_holds_the_same() -> None:
    engine = scheduler(slots=64, most_slots=1024)
    reads, _leases = branches_of(engine)
    expected = answers(engine, reads)
    big = worker(prompt(1, 80), 4)
    engine.run([big.sequence])
    assert engine.pool.allocator.slots == 128
    assert_same(answers(engine, reads), expected)


def test_pieces_of_a_fragmented_pool_read_like_one_run() -> None:
    engine = scheduler(slots=64)
    expected = greedy(engine.programs.model, prompt(3, 21), 5)
    parts = [engine.pool.reserve(8) for _ in range(8)]
    for number in (0, 2, 4, 5):
        parts[number].release()
    each = worker(prompt(3, 21), 5)
    engine.run([each.sequence])
    assert each.sequence.lease is not None
    assert [run.length for run in each.sequence.lease.runs] == [16, 8, 8]
    assert each.written.tokens == expected[0]
    np.testing.assert_allclose(each.written.logprobs, expected[1], atol=1e-4)


def test_a_shared_prompt_is_read_by_all() -> None:
    engine = scheduler()
    common = prompt(5, 30)
    found = [worker([*common, *prompt(80 + number, 3)], limit=4, salt="") for number in range(3)]
    engine.run([each.sequence for each in found])
    assert [each.sequence.shared_tokens for each in found] == [0, 30, 30]
    assert engine.counts["prefill_tokens"] == 30 + 3 * 3
    for each in found:
        assert each.written.tokens == greedy(engine.programs.model, each.prompt, 4)[0]


def test_workers_and_synthesizers_share_a_batch() -> None:
    """A row with scale 0 is the base model, whatever adapter its neighbours have."""
    engine = scheduler()
    reads, _leases = branches_of(engine)
    condition = conditioning(engine.programs.model)
    alone = answers(engine, reads)
    plain = worker(prompt(9, 30), 6)
    reader, written = synthesizer(prompt(50, 21), reads, condition)
    plain.sequence.conditioning = condition
    engine.run([plain.sequence, reader])
    assert_same(written, alone)
    assert plain.written.tokens == greedy(engine.programs.model, plain.prompt, 6)[0]


def test_adapter_and_mapper_change_what_is_read() -> None:
    engine = scheduler()
    reads, _leases = branches_of(engine)
    with_adapter, without = answers(engine, reads), answers(engine, reads, with_adapter=False)
    assert not np.allclose(with_adapter.logprobs[0], without.logprobs[0], atol=1e-3)


def test_scores_are_those_of_a_whole_text() -> None:
    engine = scheduler()
    texts = [prompt(seed, length) for seed, length in ((1, 30), (2, 7), (3, 70))]
    sequences = [sequence(text[:-1], Written(1), 0, targets=text[1:]) for text in texts]
    engine.run(sequences)
    found = [np.concatenate(each.scores) for each in sequences]
    for text, logprobs in zip(texts, found, strict=True):
        hidden, _, _ = engine.programs.model(np.array([text[:-1]]), np.zeros(1, np.int32))
        expected = jax.nn.log_softmax(engine.programs.model.logits(hidden[0]))
        np.testing.assert_allclose(logprobs, expected[np.arange(len(text) - 1), text[1:]], atol=1e-4)


def test_a_limited_vocabulary_is_data() -> None:
    engine = scheduler()
    found = []
    for vocabulary in (V, 10):
        written = Written(5)
        engine.run([sequence(prompt(4, 9), written, 5, vocabulary=vocabulary)])
        found.append(written.tokens)
    assert max(found[0]) >= 10 > max(found[1])


def test_one_program_a_shape_for_all_that_fits_the_first_form(count_compilations: Any) -> None:
    engine = scheduler()
    before = engine.programs.compilations
    rng = np.random.default_rng(0)

    def requests(seed: int) -> None:
        count = int(rng.integers(1, 6))
        workers = [worker(prompt(seed + n, int(rng.integers(10, 60))), int(rng.integers(2, 9))) for n in range(count)]
        engine.run([each.sequence for each in workers])
        pairs = [each.branch() for each in workers if len(each.written.tokens)]
        asked, _ = synthesizer(prompt(seed, int(rng.integers(10, 60))), [read for read, _ in pairs][:4])
        engine.run([asked])

    for seed in range(6):
        requests(100 * seed)
    shapes = len(BUCKETS.decode) + len(BUCKETS.prefill)
    assert engine.programs.compilations - before <= shapes
    with count_compilations() as seen:
        for seed in range(6, 10):
            requests(100 * seed)
    assert [name for name in seen.names if "step" in name] == []


def test_what_never_fits_says_how_much_there_is() -> None:
    engine = scheduler(slots=64)
    with pytest.raises(MemoryLimitError, match=r"^100 slots .* are needed and 64 of 64 are free"):
        engine.pool.reserve(100)
    kept = engine.pool.reserve(40)
    with pytest.raises(MemoryLimitError, match=r"^50 slots .* are needed and 24 of 64 are free"):
        engine.pool.reserve(50)
    assert kept.slots == 40


def test_too_many_pieces_are_refused_before_anything_runs() -> None:
    engine = scheduler()
    reads, _leases = branches_of(engine, (3,))
    many = reads[0]._replace(runs=reads[0].runs * 200)
    asked, _ = synthesizer(prompt(1, 5), [many])
    before = jax.device_get(engine.pool.heads.k)
    with pytest.raises(InputError, match="reads 201 pieces of caches"):
        engine.run([asked])
    np.testing.assert_array_equal(before, engine.pool.heads.k)


def test_too_many_pieces_wait_for_larger_ones() -> None:
    """A sequence that gives its slots back keeps what it reads."""
    engine = scheduler(slots=1024)
    reads, leases = branches_of(engine, (5,))
    first, expected = synthesizer(prompt(1, 440), reads, kept=leases)
    engine.run([first])
    del first
    pages = [engine.pool.reserve(8) for _ in range((1024 - engine.pool.used_slots) // 8)]
    for page in pages[::2]:
        page.release()
    short = worker(prompt(2, 5), limit=12)
    asked, written = synthesizer(prompt(1, 440), reads, kept=leases)
    del leases
    engine.submit(short.sequence)
    engine.submit(asked)
    while engine.running == 0 or short.sequence.drawn < 3:
        engine.advance()
    assert asked.state is SequenceState.WAITING
    for page in pages[1::2]:
        page.release()
    while asked.state is not SequenceState.ENDED:
        engine.advance()
    assert asked.error is None
    assert_same(written, expected)


def test_a_failed_step_loses_the_buffer_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scheduler()
    _, leases = branches_of(engine)

    def broken(call: Any) -> Any:
        for leaf in jax.tree.leaves(call.args[1]):
            leaf.delete()
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.programs, "run", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.run([worker(prompt(1, 4), 2).sequence])
    monkeypatch.undo()
    assert all(lease.lost for lease in leases)
    again = worker(prompt(1, 4), 2)
    engine.run([again.sequence])
    assert again.written.tokens == greedy(engine.programs.model, prompt(1, 4), 2)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_number_formats(dtype: str) -> None:
    engine = scheduler(dtype=dtype)
    each = worker(prompt(3, 21), 5)
    engine.run([each.sequence])
    tokens, logprobs = greedy(engine.programs.model, each.prompt, 5)
    assert each.written.tokens[0] == tokens[0]
    np.testing.assert_allclose(each.written.logprobs[0], logprobs[0], atol=0.05)


def test_a_second_form_for_more_branches() -> None:
    engine = scheduler(buckets=Buckets(decode=(1,), prefill=((1, 16),), branches=(2, 5)))
    reads, _leases = branches_of(engine, (3, 4, 5))
    asked, written = synthesizer(prompt(2, 9), reads)
    engine.run([asked])
    wider = scheduler()
    others, _kept = branches_of(wider, (3, 4, 5))
    expected, told = synthesizer(prompt(2, 9), others)
    wider.run([expected])
    assert_same(written, told)


MESHES = ["branch=2,tensor=2,data=2", "branch=4,tensor=2", "data=4,fsdp=2", "branch=8"]


class TestMesh:
    """The same tokens, and log-probabilities within 2e-5, wherever sequences and branches lie."""

    def questions(self, engine: Any, blocks: int, spread: bool) -> list[Written]:
        """Two questions of three workers each; branches go round the blocks of their question's part."""
        workers = []
        for number in range(6):
            block = number % blocks if spread else 0
            workers.append(worker(prompt(20 + number, 9 + number), 3 + number % 4, block=block))
        engine.run([each.sequence for each in workers])
        found, asked, leases = [], [], []
        condition = conditioning(engine.programs.model)
        for question in range(2):
            pairs = [each.branch() for each in workers[question::2]]
            leases += [lease for _, lease in pairs]
            home = workers[question].sequence.lease.runs[0].block
            reads = [read for read, _ in pairs]
            each, written = synthesizer(prompt(50 + question, 21), reads, condition, 4, block=home)
            asked.append(each)
            found.append(written)
        engine.run(asked)
        return [each.written for each in workers] + found

    @pytest.mark.parametrize("axes", exhaustive_but(MESHES, fast=MESHES[:1], full=MESHES[1:2]))
    def test_sharded_is_unsharded(self, axes: str) -> None:
        expected = self.questions(scheduler(config=SHARDED), 1, spread=False)
        mesh = make_mesh(axes)
        engine = scheduler(config=SHARDED, mesh=mesh, slots=256)
        blocks = mesh.shape["data"] * mesh.shape["branch"]
        # Without data shards, all blocks are one part, and a question's branches may lie on any of them.
        spread = mesh.shape["data"] == 1
        for one, other in zip(self.questions(engine, blocks, spread), expected, strict=True):
            assert_same(one, other)


def test_the_first_steps_are_compiled_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill's compilation waits for decoding's to have begun; nothing is compiled that does not run."""
    known = scheduler()
    engine = Scheduler(Programs(known.programs.model), known.pool, BUCKETS)
    lower, decoding = engine.programs.lower, threading.Event()

    def waiting(call: ProgramCall, *traced: Any) -> Any:
        if call.args[-1].shape[1] == call.static["layout"].width + 2:  # one token a row
            decoding.set()
        else:
            assert decoding.wait(60)
        return lower(call, *traced)

    monkeypatch.setattr(engine.programs, "lower", waiting)
    each = worker(prompt(1, 9), 4)
    engine.run([each.sequence])
    assert len(each.written.tokens) == 4
    assert engine.programs.compilations == 2
