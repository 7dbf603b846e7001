"""Execute one notebook whole and write a copy with its outputs.

    python launch/execute_notebook.py notebooks/quickstart.ipynb notebooks/executed/quickstart.ipynb [NAME=VALUE ...]

NAME=VALUE replaces a value of the cell that is tagged "parameters"; VALUE is a Python literal, or else a text.  A wrong NAME
ends this with exit code 2.  Each cell's seconds are printed.  The
copy is written also when a cell fails, with the error in it, and when the kernel dies; the exit code is then 1.
Devices and network are those of kernel_environment.py.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from kernel_environment import kernel_environment
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError


def with_parameters(notebook: Any, values: dict[str, Any]) -> Any:
    """Insert a cell that sets `values` behind the one that is tagged "parameters".

    Raises ValueError for a name that the cell does not set.
    """
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    names = [node for node in ast.walk(ast.parse(notebook.cells[place].source)) if isinstance(node, ast.Name)]
    known = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"no parameter {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    lines = ["# Set for this execution", *(f"{name} = {value!r}" for name, value in values.items())]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected"]}))
    return notebook


def parameter(setting: str) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE."""
    name, equals, text = setting.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{setting!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text


def existing_file(given: str) -> str:
    """Return the path of a file."""
    if not Path(given).is_file():
        raise argparse.ArgumentTypeError(f"there is no {given}")
    return given


class Told(NotebookClient):  # type: ignore[misc]  # nbclient has no types
    """A client that tells of every code cell."""

    async def async_execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        """Execute a cell and print its seconds and its first line."""
        begin = time.perf_counter()
        try:
            return await super().async_execute_cell(cell, cell_index, *args, **kwargs)
        finally:
            if cell.cell_type == "code":
                first = (cell.source.splitlines() or [""])[0][:70]
                print(f"  {time.perf_counter() - begin:6.1f} s  {first}", flush=True)


def main() -> int:
    """Execute; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=existing_file, help="the notebook")
    parser.add_argument("target", help="the copy")
    parser.add_argument("settings", nargs="*", type=parameter, metavar="NAME=VALUE", help="of its parameters")
    given = parser.parse_args()
    notebook = nbformat.read(given.source, as_version=4)
    if given.settings:
        try:
            notebook = with_parameters(notebook, dict(given.settings))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    return execute(notebook, given.source, given.target)


def execute(notebook: Any, source: str, target: str) -> int:
    """Execute a notebook, and write it with its outputs; return the exit code."""
    folder = Path(target).parent
    folder.mkdir(parents=True, exist_ok=True)
    begin, failed = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as sockets:
        # Over sockets in a folder of this user, not over TCP, which everybody on this machine could read.  A manager
        # that is not asynchronous would make nbclient wait for a dead kernel without end.
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        options = {"timeout": 1200, "startup_timeout": 300, "shutdown_kernel": "immediate"}
        client = Told(notebook, km=kernel, resources={"metadata": {"path": str(folder)}}, **options)
        try:
            client.execute(env=kernel_environment(os.environ), cleanup_kc=True)
        except (CellExecutionError, CellTimeoutError) as error:
            failed = str(error)
        except DeadKernelError:
            failed = "the kernel died: stopped from outside, out of memory, or crashed in the last cell above"
    nbformat.write(notebook, target)
    print(f"{source}: {time.perf_counter() - begin:.0f} s", flush=True)
    if failed is None:
        return 0
    print(failed, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
