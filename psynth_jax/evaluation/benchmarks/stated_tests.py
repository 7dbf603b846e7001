"""The inputs in the test programs that EvalPlus's data sets on the hub carry.

    def check(candidate):
        inputs = [[[1, 2], 3], ...]     <- these are read; nothing of the program is run for it
        results = ...

The data sets on the hub do not say which inputs are those of the original benchmark.
"""

from __future__ import annotations

import ast
from typing import Any

from psynth_jax.errors import DataError


class _Floats(ast.NodeTransformer):
    """Writes out the floats that have no literal: inf, nan, float("inf"), np.nan."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ("inf", "nan") else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Constant(float(node.attr)) if node.attr in ("inf", "nan") else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id == "float" and len(node.args) == 1:
            text = node.args[0]
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                return ast.Constant(float(text.value))
        return node


def stated_inputs(where: str, test: str) -> list[list[Any]]:
    """Return the inputs of a test program, each a list of arguments.

    Raises `DataError` where it has none, or has others than literals.
    """
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: 'test' is no Python program: {error}") from None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "inputs":
            return _literal(where, node.value)
    raise DataError(f"{where}: 'test' assigns no list to 'inputs'")


def _literal(where: str, node: ast.expr) -> list[list[Any]]:
    try:
        found = ast.literal_eval(_Floats().visit(node))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: 'inputs' in 'test' is no list of literals: {error}") from None
    rows = found if isinstance(found, list) else [None]
    if not all(isinstance(arguments, list | tuple) for arguments in rows):
        raise DataError(f"{where}: 'inputs' in 'test' must be a list of lists of arguments")
    return [list(arguments) for arguments in found]
