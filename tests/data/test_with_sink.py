"""Examples that have the attention sink."""

from __future__ import annotations

import numpy as np

from psynth_jax.data.example import Example, ExampleList, lengths_of
from psynth_jax.data.with_sink import WithSink
from tests.training.examples import random_examples


def test_examples_have_it_as_their_first_branch_and_count_it() -> None:
    plain = ExampleList("random", [*random_examples(5), Example("none", "random", *[np.arange(3, dtype=np.int32)] * 3, ())])
    sinking = WithSink(plain, (7, 8, 9))
    assert len(sinking) == 6 and sinking.task == "random" and sinking.sink == (7, 8, 9)
    for number, (before, lengths) in enumerate(zip([plain[i] for i in range(6)], sinking.lengths, strict=True)):
        after = sinking[number]
        sink, *others = after.branches
        assert (sink.prefix.tolist(), sink.kept.tolist()) == ([], [7, 8, 9])
        assert [x.kept.tolist() for x in others] == [x.kept.tolist() for x in before.branches]
        assert [x.prefix.tolist() for x in others] == [[7, 8, 9, *x.prefix.tolist()] for x in before.branches]
        assert tuple(lengths) == lengths_of(after)
