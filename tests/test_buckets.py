"""What can be compiled."""

from __future__ import annotations

import pytest

from psynth_jax.buckets import Buckets, bucket


def test_the_default_set_is_ten_programs() -> None:
    shapes = Buckets().shapes()
    assert len(set(shapes)) == len(shapes) == 10
    assert {(shape.branches, shape.runs) for shape in shapes} == {(9, 25)}


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 4), (4, 4), (5, 8), (33, 64), (64, 64), (192, 64)])
def test_a_step_is_the_smallest_that_takes_all_rows(rows: int, size: int) -> None:
    assert Buckets().rows_of(rows) == size


def test_rows_are_multiples_of_the_data_axis() -> None:
    buckets = Buckets(data=2)
    assert [buckets.rows_of(rows) for rows in (1, 3, 9, 1000)] == [2, 8, 16, 128]
    assert all(shape.rows % 2 == 0 for shape in buckets.shapes())
    assert buckets.most_rows == 128


@pytest.mark.parametrize(
    ("waiting", "chunk"),
    [
        ([20], (1, 64)),
        ([200], (1, 64)),  # four calls of 64 are less than one of 512
        ([500], (1, 512)),
        ([1024], (1, 512)),
        ([40] * 3, (1, 64)),
        ([60] * 8, (8, 64)),
        ([250] * 8, (8, 256)),
        ([1000, 20], (1, 512)),
    ],
)
def test_a_chunk_wastes_little(waiting: list[int], chunk: tuple[int, int]) -> None:
    assert Buckets().chunk_of(waiting) == chunk


def test_fewer_calls_where_a_call_is_dear() -> None:
    assert Buckets(call_tokens=256).chunk_of([200]) == (1, 512)
    assert Buckets(call_tokens=256).chunk_of([40] * 3) == (8, 64)


@pytest.mark.parametrize(("most", "chunk"), [(1, (1, 64)), (64, (1, 64)), (511, (1, 64)), (512, (8, 64))])
def test_a_call_between_tokens_has_few(most: int, chunk: tuple[int, int]) -> None:
    """The smallest one may always be run."""
    assert Buckets().chunk_of([46] * 8, most) == chunk


@pytest.mark.parametrize(("branches", "size"), [(0, 9), (9, 9), (10, 33), (33, 33), (34, 65), (66, 129)])
def test_branches_that_a_row_can_read(branches: int, size: int) -> None:
    assert Buckets().branches_of(branches) == size


def test_runs_that_a_row_can_read() -> None:
    buckets = Buckets()
    assert [buckets.runs_of(9, runs) for runs in (0, 25, 26, 88, 89)] == [25, 25, 88, 88, 0]


def test_every_program_is_told_once_and_covers_what_rows_are_given() -> None:
    buckets = Buckets()
    programs = buckets.programs()
    assert len(set(programs)) == len(programs)
    assert [program.shape for program in programs if program.is_default] == buckets.shapes()
    forms = {(program.shape.branches, program.shape.runs) for program in programs if program.name == "step"}
    for branches in (1, 9, 10, 33):
        for runs in (1, 25, 26, 49, 88):
            size = buckets.branches_of(branches)
            assert (size, buckets.runs_of(size, runs)) in forms
    assert all(program.shape.tokens > 1 for program in programs if program.name == "score")


def test_few_padded_sizes_exist() -> None:
    sizes = sorted({bucket(count) for count in range(1, 17)})
    assert sizes == [1, 2, 3, 4, 6, 8, 12, 16]
    assert all(bucket(count) == min(size for size in sizes if size >= count) for count in range(1, 17))
