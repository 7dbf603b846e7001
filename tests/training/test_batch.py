"""Arrays of a batch hold their examples, wherever a mesh puts them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import psynth_jax as ps
from psynth_jax.data.example import ExampleList
from psynth_jax.training.batch import Batch, BatchBuilder, place
from psynth_jax.training.config import Batches, Task
from psynth_jax.training.plan import Plan, PlannedBatch, Shape
from tests.training.examples import random_examples

EXAMPLES = random_examples(12)
SOURCE, TASK = [ExampleList("random", EXAMPLES)], [Task(synthetic=1, cross_entropy=0.25, distillation=0.5)]


def built(accumulate: int = 1, mesh: Mesh | None = None, examples: int = 3) -> tuple[PlannedBatch, Batch, Shape]:
    limits = Batches(tokens=1 << 20, examples=examples, accumulate=accumulate)
    plan = Plan(SOURCE, TASK, limits)
    planned = max(plan.batches(0), key=lambda batch: sum(map(len, batch.groups)))
    return planned, *BatchBuilder(SOURCE, TASK, mesh=mesh, micro_batches=accumulate).build(planned)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_part_of_every_example_is_there(accumulate: int) -> None:
    planned, batch, _ = built(accumulate)
    assert batch.branches is not None and batch.teacher is not None
    for micro, group in enumerate(planned.groups):
        for row, (_, number) in enumerate(group):
            example, at = EXAMPLES[number], (micro, row)
            size = len(example.target)
            for fed, before in ((batch.student, example.prompt), (batch.teacher, example.pasted)):
                whole = [*before, *example.target]
                first, count = fed.first[at], fed.count[at]
                assert count == len(whole) - 1 <= fed.slots
                assert fed.tokens[micro, 0, first : first + count].tolist() == whole[:-1]
                # The token that follows place `at` is the target.
                assert [whole[place - first + 1] for place in fed.at[at][:size]] == example.target.tolist()
            assert batch.target[at][:size].tolist() == example.target.tolist()
            assert batch.weight[at].tolist() == [1.0] * size + [0.0] * (len(batch.weight[at]) - size)
            assert (batch.cross_entropy[at], batch.distillation[at]) == (0.25, 0.5)
            rows = batch.branches
            for index, branch in enumerate(example.branches):
                line, prefix = rows.row[at][index], rows.prefix[at][index]
                whole = [*branch.prefix, *branch.kept]
                first, count = rows.first[micro, line], rows.count[micro, line]
                assert rows.tokens[micro, 0, first : first + count].tolist() == whole
                assert (prefix, rows.kept[at][index]) == (len(branch.prefix), len(branch.kept))
            assert not rows.kept[at][len(example.branches) :].any()


def test_no_two_branches_share_a_row() -> None:
    planned, batch, _ = built(mesh=ps.make_mesh("branch=2", jax.devices()[:2]))
    assert batch.branches is not None
    rows = batch.branches.row[batch.branches.kept > 0].tolist()
    assert len(set(rows)) == len(rows) == sum(len(EXAMPLES[number].branches) for _, number in planned.groups[0])
    half = batch.branches.first.shape[1] // 2
    assert abs(sum(row < half for row in rows) - len(rows) / 2) <= 0.5, "branches are spread over both blocks"


@pytest.mark.parametrize("examples", [8, 3])
def test_a_mesh_holds_each_question_next_to_its_branches(examples: int) -> None:
    mesh = ps.make_mesh("data=2,fsdp=2,branch=2")
    planned, host, shape = built(mesh=mesh, examples=examples)
    batch = place(host, mesh)
    assert batch.branches is not None and host.branches is not None
    fed, rows = shape.examples // 4, shape.rows // 4
    assert shape.examples % 4 == 0 and shape.rows % 8 == 0
    for shard in range(4):
        here = slice(shard * fed, (shard + 1) * fed)
        used = host.branches.row[0, here][host.branches.kept[0, here] > 0]
        assert ((used // rows) == shard).all()
    assert (host.student.count > 0).sum() == len(planned.groups[0]), "no example is left out or doubled"
    assert batch.student.first.addressable_shards[0].data.shape[1] == fed
    assert host.teacher is not None and host.student.tokens.shape[1] == host.teacher.tokens.shape[1] == 4
    assert batch.student.tokens.addressable_shards[0].data.shape[1] == 1, "every device has the list of its own rows"
    for part in (host.student, host.teacher):
        first, count = (x[0].reshape(4, -1) for x in (part.first, part.count))
        assert (first == np.cumsum(count, axis=1) - count).all(), "rows begin where the one before ends"
    assert batch.branches.first.addressable_shards[0].data.shape[1] == rows // 2
    assert batch.branches.tokens.addressable_shards[0].data.shape[1] == 1, "every device has the list of its own rows"
    assert all((np.asarray(a) == b).all() for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(host), strict=True))


def test_a_mesh_makes_few_shapes_of_one() -> None:
    """Each is compiled: what shards hold differs from batch to batch, and must not give a shape to each of them."""
    examples = random_examples(300)
    source, mesh = [ExampleList("random", examples)], ps.make_mesh("data=8")
    plan = Plan(source, TASK, Batches(tokens=800, examples=32, shapes=3))
    batches = [*plan.batches(0), *plan.batches(1)]
    builder = BatchBuilder(source, TASK, mesh=mesh)
    built = {builder.build(planned)[1] for planned in batches}
    assert len(batches) > 30 and len(built) <= 4 * len(plan.shapes), (len(batches), len(built), len(plan.shapes))


def test_counts_are_of_real_tokens() -> None:
    planned, *_ = built()
    counts = BatchBuilder(SOURCE, TASK).counts(planned)
    chosen = [EXAMPLES[number] for _, number in planned.groups[0]]
    assert counts.examples == len(chosen)
    assert counts.branch_tokens == sum(branch.length for example in chosen for branch in example.branches)
    assert counts.target_tokens == sum(len(example.target) for example in chosen)
    assert counts.teacher_tokens == sum(len(example.pasted) + len(example.target) for example in chosen)
