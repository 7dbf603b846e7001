"""Names that begin with a letter of their own, and options that only look like one."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.lettered_names import is_name


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("C. difficile", True),
        ("C difficile colitis", True),
        ("E. coli", True),
        ("B cells", True),
        ("B lymphocytes", True),
        ("D dimer", True),
        ("B. difficile", False),
        ("C. difficult", False),
        ("C. aspirin", False),
        ("B. E. coli", False),
        ("B. cells", False),
        ("B", False),
        ("", False),
    ],
)
def test_names(text: str, is_one: bool) -> None:
    assert is_name(text, 0) == is_one
    assert is_name(f"so {text}", 3) == is_one
