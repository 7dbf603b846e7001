"""Sequences through a pool: against whole texts run again for every token, alone and in any company."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.buckets import Buckets
from psynth_jax.engine.sequences import PositionedRun, SequenceSampling, TokenSequence
from psynth_jax.engine.step import Conditioning
from psynth_jax.errors import InputError, MemoryLimitError
from psynth_jax.sharding import make_mesh
from tests.engine.machines import (
    BUCKETS,
    CONFIG,
    V,
    Written,
    conditioning,
    greedy,
    prompt,
    scheduler,
    synthesizer,
    worker,
)

BASE = Conditioning()
SHARDED = CONFIG.model_copy(update={"heads": 8, "width": 32})  # what a mesh of eight devices divides
LENGTHS = (3, 17, 40, 1, 64, 90)


def test_workers_write_what_whole_texts_say() -> None:
    engine = scheduler()
    workers = [worker(engine, prompt(seed, length), limit=4 + seed) for seed, length in enumerate(LENGTHS)]
    engine.run([each.sequence for each in workers], BASE)
    for seed, each in enumerate(workers):
        tokens, logprobs = greedy(engine.programs.model, each.prompt, 4 + seed)
        assert each.written.tokens == tokens
        np.testing.assert_allclose(each.written.logprobs, logprobs, atol=1e-4)


def test_a_row_of_any_batch_is_the_row_alone() -> None:
    """Log-probabilities of drawn tokens, too: a row's key does not depend on its place."""
    sampling = [SequenceSampling(0.9, 0.95, 40, (7, number)) for number in range(len(LENGTHS))]
    engine = scheduler()
    together = [worker(engine, prompt(n, length), 5, sampling=sampling[n]) for n, length in enumerate(LENGTHS)]
    engine.run([each.sequence for each in together], BASE)
    for number, each in enumerate(together):
        alone = worker(engine, each.prompt, 5, sampling=sampling[number])
        engine.run([alone.sequence], BASE)
        assert alone.written.tokens == each.written.tokens
        np.testing.assert_allclose(alone.written.logprobs, each.written.logprobs, atol=2e-5)


def branches_of(engine: Any, lengths: tuple[int, ...] = (5, 9, 3)) -> tuple[list[Any], list[Any]]:
    workers = [worker(engine, prompt(20 + n, 11 + n), limit=length) for n, length in enumerate(lengths)]
    engine.run([each.sequence for each in workers], BASE)
    pairs = [each.branch() for each in workers]
    return [read for read, _ in pairs], [lease for _, lease in pairs]


def answers(engine: Any, reads: list[Any], with_adapter: bool = True) -> Written:
    condition = conditioning(engine.programs.model) if with_adapter else BASE
    sequence, written = synthesizer(engine, prompt(50, 21), reads)
    engine.run([sequence], condition)
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
    new = [worker(engine, prompt(70 + n, length), 3) for n, length in enumerate((1, 19, 66))]
    engine.run([each.sequence for each in new], BASE)
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
    big = worker(engine, prompt(1, 80), 4)
    engine.run([big.sequence], BASE)
    assert engine.pool.allocator.slots == 128
    assert_same(answers(engine, reads), expected)


def test_pieces_of_a_fragmented_pool_read_like_one_run() -> None:
    engine = scheduler(slots=64)
    expected = greedy(engine.programs.model, prompt(3, 21), 5)
    parts = [engine.pool.reserve(8) for _ in range(8)]
    for number in (0, 2, 4, 5):
        parts[number].release()
    each = worker(engine, prompt(3, 21), 5)
    assert [run.length for run in each.sequence.lease.runs] == [16, 8, 8]
    engine.run([each.sequence], BASE)
    assert each.written.tokens == expected[0]
    np.testing.assert_allclose(each.written.logprobs, expected[1], atol=1e-4)


def test_a_shared_prompt_is_read_by_all() -> None:
    engine = scheduler()
    common = prompt(5, 30)
    shared = worker(engine, common, limit=1)
    engine.run([shared.sequence], BASE)
    runs = []
    for run in shared.sequence.lease.part(0, len(common)).runs:
        runs.append(PositionedRun(run, len(runs) and runs[-1].position + runs[-1].run.length))
    found = []
    for number in range(3):
        written = Written(4)
        lease = engine.pool.reserve(16)
        rest = prompt(80 + number, 3)
        sequence = TokenSequence(rest, lease, written, shared=runs, position=len(common), vocabulary=V)
        found.append((sequence, written, rest))
    engine.run([sequence for sequence, _, _ in found], BASE)
    for _, written, rest in found:
        assert written.tokens == greedy(engine.programs.model, [*common, *rest], 4)[0]


def test_workers_and_synthesizers_share_a_batch() -> None:
    """A row with scale 0 is the base model, whatever adapter its neighbours have."""
    engine = scheduler()
    reads, _leases = branches_of(engine)
    condition = conditioning(engine.programs.model)
    alone = answers(engine, reads)
    plain = worker(engine, prompt(9, 30), 6)
    reader, written = synthesizer(engine, prompt(50, 21), reads)
    engine.run([plain.sequence, reader], condition)
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
    sequences = []
    for text in texts:
        lease = engine.pool.reserve(len(text))
        sequences.append(TokenSequence(text[:-1], lease, Written(1), vocabulary=V))
    found = engine.score(sequences, [text[1:] for text in texts], BASE)
    for text, logprobs in zip(texts, found, strict=True):
        hidden, _, _ = engine.programs.model(np.array([text[:-1]]), np.zeros(1, np.int32))
        expected = jax.nn.log_softmax(engine.programs.model.logits(hidden[0]))
        np.testing.assert_allclose(logprobs, expected[np.arange(len(text) - 1), text[1:]], atol=1e-4)


def test_a_limited_vocabulary_is_data() -> None:
    engine = scheduler()
    found = []
    for vocabulary in (V, 10):
        written = Written(5)
        sequence = TokenSequence(prompt(4, 9), engine.pool.reserve(20), written, vocabulary=vocabulary)
        engine.run([sequence], BASE)
        found.append(written.tokens)
    assert max(found[0]) >= 10 > max(found[1])


def test_one_program_a_shape_for_all_that_fits_the_first_form(count_compilations: Any) -> None:
    engine = scheduler()
    before = engine.programs.compilations
    rng = np.random.default_rng(0)

    def requests(seed: int) -> None:
        count = int(rng.integers(1, 6))
        workers = [
            worker(engine, prompt(seed + n, int(rng.integers(10, 60))), int(rng.integers(2, 9))) for n in range(count)
        ]
        engine.run([each.sequence for each in workers], BASE)
        pairs = [each.branch() for each in workers if len(each.written.tokens)]
        sequence, _ = synthesizer(engine, prompt(seed, int(rng.integers(10, 60))), [read for read, _ in pairs][:4])
        engine.run([sequence], BASE)

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
    sequence, _ = synthesizer(engine, prompt(1, 5), [many])
    before = jax.device_get(engine.pool.heads.k)
    with pytest.raises(InputError, match="reads 201 pieces of caches"):
        engine.run([sequence], BASE)
    np.testing.assert_array_equal(before, engine.pool.heads.k)


def test_a_failed_step_loses_the_buffer_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scheduler()
    _, leases = branches_of(engine)

    def broken(call: Any) -> Any:
        for leaf in jax.tree.leaves(call.args[1]):
            leaf.delete()
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.programs, "run", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.run([worker(engine, prompt(1, 4), 2).sequence], BASE)
    monkeypatch.undo()
    assert all(lease.lost for lease in leases)
    again = worker(engine, prompt(1, 4), 2)
    engine.run([again.sequence], BASE)
    assert again.written.tokens == greedy(engine.programs.model, prompt(1, 4), 2)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_number_formats(dtype: str) -> None:
    engine = scheduler(dtype=dtype)
    each = worker(engine, prompt(3, 21), 5)
    engine.run([each.sequence], BASE)
    tokens, logprobs = greedy(engine.programs.model, each.prompt, 5)
    assert each.written.tokens[0] == tokens[0]
    np.testing.assert_allclose(each.written.logprobs[0], logprobs[0], atol=0.05)


def test_a_second_form_for_more_branches() -> None:
    engine = scheduler(buckets=Buckets(decode=(1,), prefill=((1, 16),), branches=(2, 5)))
    reads, _leases = branches_of(engine, (3, 4, 5))
    sequence, written = synthesizer(engine, prompt(2, 9), reads)
    engine.run([sequence], BASE)
    wider = scheduler()
    others, _kept = branches_of(wider, (3, 4, 5))
    expected, told = synthesizer(wider, prompt(2, 9), others)
    wider.run([expected], BASE)
    assert_same(written, told)


MESHES = ["branch=2,tensor=2,data=2", "branch=4,tensor=2", "data=4,fsdp=2", "branch=8"]


class TestMesh:
    """The same tokens, and log-probabilities within 2e-5, wherever sequences and branches lie."""

    def questions(self, engine: Any, blocks: int, spread: bool) -> list[Written]:
        """Two questions of three workers each; branches go round the blocks of their question's part."""
        workers = []
        for number in range(6):
            block = number % blocks if spread else 0
            workers.append(worker(engine, prompt(20 + number, 9 + number), 3 + number % 4, block))
        engine.run([each.sequence for each in workers], BASE)
        found, asked, leases = [], [], []
        for question in range(2):
            pairs = [each.branch() for each in workers[question::2]]
            leases += [lease for _, lease in pairs]
            home = workers[question].sequence.lease.runs[0].block
            sequence, written = synthesizer(engine, prompt(50 + question, 21), [read for read, _ in pairs], 4, home)
            asked.append(sequence)
            found.append(written)
        engine.run(asked, conditioning(engine.programs.model))
        return [each.written for each in workers] + found

    @pytest.mark.parametrize("axes", MESHES)
    def test_sharded_is_unsharded(self, axes: str) -> None:
        expected = self.questions(scheduler(config=SHARDED), 1, spread=False)
        mesh = make_mesh(axes)
        engine = scheduler(config=SHARDED, mesh=mesh, slots=256)
        blocks = mesh.shape["data"] * mesh.shape["branch"]
        # Without data shards, all blocks are one part, and a question's branches may lie on any of them.
        spread = mesh.shape["data"] == 1
        for one, other in zip(self.questions(engine, blocks, spread), expected, strict=True):
            assert_same(one, other)
