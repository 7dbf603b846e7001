"""MBPP+: 378 short functions, with the tests of MBPP and those of EvalPlus.

EvalPlus's release   base_input, plus_input, atol, assertion   accuracy, accuracy_base
the hub's data set   test, with all inputs in it, test_list    accuracy, accuracy_published
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping
from typing import Any, ClassVar

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks import row_fields
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion, HubData
from psynth_jax.evaluation.benchmarks.coding import CodeBenchmark
from psynth_jax.evaluation.benchmarks.plus_rows import atol_of, inputs_of
from psynth_jax.evaluation.benchmarks.stated_tests import stated_inputs
from psynth_jax.evaluation.benchmarks.trials import encoded_cases
from psynth_jax.evaluation.benchmarks.typed_inputs import shapes_of, with_types

_SHOWN = 3  # assertions in a prompt, as in the published one


class MBPPPlus(CodeBenchmark):
    """Rows with `task_id`, `prompt` and one of the two forms."""

    name: ClassVar[str] = "mbpp_plus"  # type: ignore[misc]
    hub = HubData("evalplus/mbppplus", "test", "b2d74c91837c3f2a20c1299ae98133cbe7cfa077")

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; see `Benchmark`."""
        of_release = "base_input" in row
        details = _of_release(where, row) if of_release else _of_hub(where, row)
        assertions = row_fields.code(where, row, "assertion") if of_release else _listed(where, row)
        text = row_fields.text(where, row, "prompt").strip('"').strip()
        # The release ends its description with the first of the assertions.
        description = text.partition("\nassert ")[0].strip()
        shown = "\n".join(_statements(where, assertions)[:_SHOWN])
        problem = f"{description}\n\nIt must pass these tests:\n{shown}"
        return self.asked(row_fields.identifier(row, number, "task_id"), problem, details)


def _of_release(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    entry_point = row_fields.text(where, row, "entry_point")
    base = inputs_of(where, row, "base_input")
    plus = inputs_of(where, row, "plus_input")
    assertions = row_fields.code(where, row, "assertion")
    _parsed(where, assertions)
    shapes = shapes_of(assertions, entry_point, base)
    return {
        "entry_point": entry_point,
        "solution": row_fields.code(where, row, "canonical_solution"),
        "base": encoded_cases(where, with_types(where, base, shapes)),
        "plus": encoded_cases(where, with_types(where, plus, shapes)),
        "atol": atol_of(where, row),
    }


def _of_hub(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    test = row_fields.code(where, row, "test", "base_input")
    return {
        "entry_point": _tested_function(where, _listed(where, row)),
        "solution": row_fields.code(where, row, "code"),
        "base": [],
        "plus": encoded_cases(where, stated_inputs(where, test)),
        "atol": 0.0,
        "test": test,
    }


def _listed(where: str, row: Mapping[str, Any]) -> str:
    return "\n".join(str(line) for line in row_fields.items(where, row, "test_list"))


def _tested_function(where: str, assertions: str) -> str:
    """Return the name of the first function in the assertions that is not Python's own."""
    for node in ast.walk(_parsed(where, assertions)):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and not hasattr(builtins, called.id):
            return called.id
    raise DataError(f"{where}: 'test_list' calls no function")


def _statements(where: str, assertions: str) -> list[str]:
    found = []
    for node in _parsed(where, assertions).body:
        if isinstance(node, ast.Assert):
            found.append(ast.get_source_segment(assertions, node) or "")
    return found


def _parsed(where: str, assertions: str) -> ast.Module:
    try:
        return ast.parse(assertions)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: the assertions are no Python: {error}") from None
