"""Plans: every example once, nothing dropped without a reason, the same batches for the same seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from psynth_jax.config import LocalLayers, PlainRope
from psynth_jax.data.example import ExampleList
from psynth_jax.errors import DataError
from psynth_jax.training import plan as plan_module
from psynth_jax.training.batch import BatchBuilder
from psynth_jax.training.config import Batches, Task
from psynth_jax.training.pipeline import BatchSource
from psynth_jax.training.plan import Plan, PlannedBatch, Reference, fewer_keys, padded, row_slots
from tests.tiny import tiny_config
from tests.training.examples import ids, random_examples

FIRST, SECOND = ExampleList("first", random_examples(40)), ExampleList("second", random_examples(15, seed=1))
LIMITS = Batches(tokens=1500, examples=8)
ONE = Task(synthetic=1)


def plan(limits: Batches = LIMITS, tasks: tuple[Task, ...] = (ONE, ONE), **options: object) -> Plan:
    return Plan([FIRST, SECOND], tasks, limits, **options)  # type: ignore[arg-type]


def references(batches: list[PlannedBatch]) -> Counter[Reference]:
    return Counter(reference for batch in batches for group in batch.groups for reference in group)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_epoch_has_every_example_once(accumulate: int) -> None:
    found = plan(LIMITS.model_copy(update={"accumulate": accumulate}))
    for epoch in range(2):
        batches = found.batches(epoch)
        assert set(references(batches).values()) == {1} and references(batches).total() == 55
        assert all(len(batch.groups) == accumulate for batch in batches)


def test_groups_keep_to_their_shape() -> None:
    sources = [FIRST, SECOND]
    found = plan()
    for batch in found.batches(0):
        shape = batch.shape
        assert shape in found.shapes
        for group in batch.groups:
            lengths = np.array([sources[task].lengths[number] for task, number in group])
            assert len(group) <= shape.examples <= LIMITS.examples
            assert lengths[:, 3].sum() <= shape.rows and lengths[:, 3].max() <= shape.width
            assert lengths[:, 4].max() <= shape.slots and lengths[:, 6].sum() <= shape.listed
            fed = lengths[:, 0] + lengths[:, 2] - 1
            assert fed.max() <= shape.tokens and fed.sum() <= shape.fed


def test_short_examples_are_packed_up_to_the_budget() -> None:
    few, many = plan(Batches(tokens=400, examples=64)), plan(Batches(tokens=4000, examples=64))
    assert len(many.batches(0)) < len(few.batches(0))
    for found, budget in ((few, 400), (many, 4000)):
        for shape in found.shapes:
            assert shape.examples == 1 or shape.listed + shape.fed <= 1.5 * budget, "on average it is the budget"


def test_the_seed_decides_the_order_and_epochs_differ() -> None:
    assert plan(seed=5).batches(3) == plan(seed=5).batches(3)
    assert plan(seed=5).batches(0) != plan(seed=6).batches(0)
    assert plan(seed=5).batches(0) != plan(seed=5).batches(1)
    unshuffled = plan(seed=None)
    assert unshuffled.batches(0) == unshuffled.batches(1)


def test_weights_are_passes() -> None:
    half, double = Task(synthetic=1, weight=0.5), Task(synthetic=1, weight=2.0)
    found = plan(tasks=(half, double))
    counts = [Counter(reference.task for reference in references(found.batches(epoch)).elements()) for epoch in range(2)]
    assert counts == [{0: 20, 1: 30}, {0: 20, 1: 30}]
    taken = references(found.batches(0)) + references(found.batches(1))
    assert [taken[Reference(0, number)] for number in range(40)] == [1] * 40, "the second epoch takes the other half"


def test_a_weight_below_one_example_takes_one_now_and_then() -> None:
    found = plan(tasks=(Task(synthetic=1, weight=0.01), ONE))
    epochs = [references(found.batches(epoch)) for epoch in range(5)]
    first = [sum(count for reference, count in epoch.items() if reference.task == 0) for epoch in epochs]
    assert first == [0, 0, 1, 0, 1], "40 examples times 0.01 are 2 in five epochs"
    few = Plan([ExampleList("few", random_examples(2))], [Task(synthetic=1, weight=0.2)], LIMITS)
    source = BatchSource(few, BatchBuilder([FIRST], [ONE]), 3)
    assert [source.planned(index)[0] for index in range(3)] == [2, 4, 7], "epochs without a batch are passed over"


def test_the_digest_is_of_the_content_too() -> None:
    changed = random_examples(40)
    changed[0] = replace(changed[0], target=changed[0].target[::-1].copy())
    other = Plan([ExampleList("first", changed), SECOND], (ONE, ONE), LIMITS)
    assert other.batches(0) == plan().batches(0) and other.digest != plan().digest
    assert Plan([ExampleList("first", random_examples(40)), SECOND], (ONE, ONE), LIMITS).digest == plan().digest


def test_what_is_too_long_is_counted_by_reason() -> None:
    found = plan(Batches(tokens=1500, branch_tokens=8, target_tokens=5))
    kept = references(found.batches(0)).total()
    assert kept + sum(sum(reasons.values()) for reasons in found.dropped) == 55
    assert set(found.dropped[0]) == {"a longer branch than branch_tokens", "a longer target than target_tokens"}


def test_what_passes_the_models_window_is_dropped() -> None:
    """Branch, prompt and target take positions one after the other; of text, all that is pasted does."""
    columns = FIRST.lengths.T
    for reads, used in (("branches", columns[5] + columns[0] + columns[2]), ("text", columns[1] + columns[2])):
        window = int(np.median(used))
        found = Plan([FIRST], [ONE], LIMITS, reads=reads, config=tiny_config(max_positions=window))
        assert found.dropped == [{"more positions than the model has": int((used > window).sum())}]


def test_branches_may_be_longer_than_the_window_of_local_layers() -> None:
    local = LocalLayers(window=2, global_every=2, rope=PlainRope(theta=1e4))
    config = tiny_config(max_positions=10_000, local=local)
    assert Plan([FIRST], [ONE], LIMITS, config=config).dropped == [{}]


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError, match="55 have a longer target than target_tokens"):
        plan(Batches(target_tokens=1))


def test_the_teacher_and_text_have_their_own_lengths() -> None:
    taught = plan(tasks=(Task(synthetic=1, distillation=1.0), ONE))
    assert {shape.teacher for shape in taught.shapes} > {0}
    assert all((shape.teacher > 0) == (shape.taught > 0) for shape in taught.shapes)
    text = plan(reads="text")
    assert all(shape.rows == shape.listed == shape.slots == shape.width == 0 for shape in text.shapes)


def test_fewer_shapes_mean_fewer_programs_and_the_same_examples() -> None:
    examples = [replace(example, prompt=ids(1, 9 + 4 * number)) for number, example in enumerate(random_examples(20))]
    many, few = (Plan([ExampleList("long", examples)], [ONE], Batches(tokens=1500, shapes=most)) for most in (50, 1))
    assert len(many.shapes) > 2 and len(few.shapes) == 1
    assert references(few.batches(0)) == references(many.batches(0))


def test_padding_is_an_eighth_at_most() -> None:
    for tokens in range(1, 3000):
        assert tokens <= padded(tokens) <= max(tokens * 9 / 8 + 16, 16) and padded(tokens) % 16 == 0
        assert tokens <= row_slots(tokens) and (row_slots(tokens) <= 512 or row_slots(tokens) % 512 == 0)
        assert padded(tokens, 1) in [16 << n for n in range(9)], "one size an octave is a power of two"
        assert padded(tokens, 0.5) in [16 << n for n in range(0, 10, 2)]
    assert len({padded(tokens) for tokens in range(1, 4097)}) < 60, "few of them, so that few shapes differ"


def test_many_different_lengths_are_rounded_more_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the shapes are chosen: choosing among thousands would take minutes.  No example gets lost."""
    examples = [replace(example, prompt=ids(1, 9 + 11 * n)) for n, example in enumerate(random_examples(60))]
    source, limits = ExampleList("long", examples), Batches(tokens=1500, shapes=100)
    fine = Plan([source], [ONE], limits)
    monkeypatch.setattr(plan_module, "MOST_KEYS", 20)
    coarse = Plan([source], [ONE], limits)
    assert len(coarse.shapes) <= 20 < len(fine.shapes)
    assert max(shape.tokens for shape in coarse.shapes) == max(shape.tokens for shape in fine.shapes), "as long as needed"
    assert references(coarse.batches(0)) == references(fine.batches(0))


def test_the_cheapest_keys_are_merged() -> None:
    keys = {(64, 16, 16, 0): (100, 2.0), (64, 32, 16, 0): (90, 2.0), (512, 64, 16, 0): (5, 2.0), (64, 32, 16, 48): (1, 1.0)}
    found = fewer_keys(keys, 3)
    assert found[64, 16, 16, 0] == found[64, 32, 16, 0] == (64, 32, 16, 0)
    assert found[512, 64, 16, 0] == (512, 64, 16, 0)
    assert found[64, 32, 16, 48] == (64, 32, 16, 48), "a teacher is not run for examples that have none"
    assert set(fewer_keys(keys, 1).values()) == {(512, 64, 16, 0), (64, 32, 16, 48)}
