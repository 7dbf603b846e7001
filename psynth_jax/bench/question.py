"""The question of the benchmarks: branches of random tokens, and a random prompt."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Question:
    """branches of `branch_tokens` tokens each, and a prompt of `prompt_tokens`."""

    branches: int
    branch_tokens: int
    prompt_tokens: int

    @property
    def name(self) -> str:
        """Return what it is called: 8x1024."""
        return f"{self.branches}x{self.branch_tokens}"

    @property
    def cached(self) -> int:
        """Return the tokens of all branches."""
        return self.branches * self.branch_tokens

    def texts(self, vocabulary: int, number: int = 0) -> list[list[int]]:
        """Draw the branches' tokens; another number draws others."""
        rng = np.random.default_rng([0, number])
        return rng.integers(0, vocabulary, (self.branches, self.branch_tokens)).tolist()

    def prompt(self, vocabulary: int) -> list[int]:
        """Draw the prompt's tokens."""
        return np.random.default_rng([1]).integers(0, vocabulary, self.prompt_tokens).tolist()

    def pasted(self, vocabulary: int) -> list[int]:
        """Return the branches' tokens one after the other, and then the prompt's."""
        tokens: list[int] = []
        for text in self.texts(vocabulary):
            tokens += text
        return tokens + self.prompt(vocabulary)


@dataclasses.dataclass(frozen=True)
class Writing:
    """`rows` workers in one batch, with prompts of `prompt_tokens`, that write `new_tokens` each."""

    rows: int
    prompt_tokens: int
    new_tokens: int

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Draw the prompts' tokens."""
        rng = np.random.default_rng([2])
        return rng.integers(0, vocabulary, (self.rows, self.prompt_tokens)).tolist()
