"""HumanEval+: 164 functions to complete, with the tests of HumanEval and those of EvalPlus.

EvalPlus's release   base_input, plus_input, atol     scores: accuracy, accuracy_base
the hub's data set   test, with all inputs in it      scores: accuracy, accuracy_published
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from psynth_jax.evaluation.benchmarks import row_fields
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion, HubData
from psynth_jax.evaluation.benchmarks.coding import CodeBenchmark
from psynth_jax.evaluation.benchmarks.plus_rows import atol_of, inputs_of
from psynth_jax.evaluation.benchmarks.stated_tests import stated_inputs
from psynth_jax.evaluation.benchmarks.trials import encoded_cases

_ROOT_ATOL = 1e-4  # of HumanEval/32; the hub's rows have no `atol`


class HumanEvalPlus(CodeBenchmark):
    """Rows with `task_id`, `prompt`, `entry_point`, `canonical_solution`; see the file."""

    name: ClassVar[str] = "humaneval_plus"  # type: ignore[misc]
    hub = HubData("evalplus/humanevalplus", "test", "d32357cf319e50e9c8d8dab5ea876c72b0fd321b")

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; see `Benchmark`."""
        prompt = row_fields.code(where, row, "prompt")
        entry_point = row_fields.text(where, row, "entry_point")
        solution = row_fields.code(where, row, "canonical_solution")
        details: dict[str, Any] = {"entry_point": entry_point, "solution": prompt + solution}
        if "base_input" in row:
            details["base"] = encoded_cases(where, inputs_of(where, row, "base_input"))
            details["plus"] = encoded_cases(where, inputs_of(where, row, "plus_input"))
            details["atol"] = atol_of(where, row)
        else:
            test = row_fields.code(where, row, "test", "base_input")
            details["base"] = []
            details["plus"] = encoded_cases(where, stated_inputs(where, test))
            details["atol"] = _ROOT_ATOL if entry_point == "find_zero" else 0.0
            # The published code replaces the word wherever it stands, and calls the check itself.
            replaced = re.sub(r"candidate", lambda match: entry_point, test)
            details["test"] = f"{replaced}\ncheck({entry_point})\n"
        problem = f"Complete this function:\n\n{prompt.strip()}"
        return self.asked(row_fields.identifier(row, number, "task_id"), problem, details)
