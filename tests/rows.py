"""Sampling options of rows as a compiled step has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from psynth_jax.engine.sampling import RowSampling
from psynth_jax.synthesis.sampling import SamplingOptions, sampling_of


def row_sampling(options: SamplingOptions, seeds: Sequence[tuple[int, int]]) -> RowSampling:
    """Return the same options for a row of every (seed, number of the row in its question)."""
    rows = [sampling_of(options, seed) for seed in seeds]
    numbers = [(row.seed[0] & 0xFFFFFFFF, row.seed[0] >> 32 & 0xFFFFFFFF, row.seed[1]) for row in rows]
    return RowSampling(
        np.array([row.temperature for row in rows], np.float32),
        np.array([row.top_p for row in rows], np.float32),
        np.array([min(row.top_k, np.iinfo(np.int32).max) for row in rows], np.int32),
        np.array([row.min_p for row in rows], np.float32),
        np.array([row.alternatives for row in rows], np.int32),
        np.array(numbers, np.uint32),
    )
