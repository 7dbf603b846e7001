"""What the pieces of a GPU check found, as one JSON object and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table


def figures(pieces: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join our seconds and torch's for each question; what was not measured is left out."""
    joined: dict[str, dict[str, Any]] = {}
    for piece in ("ours", "torch"):
        for record in pieces.get(piece, {}).get("records", ()):
            joined.setdefault(record["question"], {}).update(record)
    for found in joined.values():
        if {"ttft_branches_s", "torch_text_s"} <= set(found):
            ours = found["ttft_branches_s"]
            found["torch_text_over_branches"] = found["torch_text_s"] / ours
            found["torch_published_over_branches"] = found["torch_published_s"] / ours
        if {"ttft_text_s", "torch_text_s"} <= set(found):
            found["text_over_torch"] = found["ttft_text_s"] / found["torch_text_s"]
    return list(joined.values())


def workers(pieces: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return what is known of workers in one batch."""
    found = {}
    for piece in ("ours", "torch"):
        for name, value in pieces.get(piece, {}).items():
            if name.startswith(("workers", "torch_workers")):
                found[name] = value
    if {"workers_s", "torch_workers_s"} <= set(found):
        found["workers_over_torch"] = found["workers_s"] / found["torch_workers_s"]
    return found


def unsound(name: str, piece: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a piece, a line each."""
    wrong = []
    if piece.get("error"):
        wrong.append(f"{name}: {piece['error']}")
    elif not piece.get("done"):
        wrong.append(f"{name}: not finished")
    wrong += [f"{name}: no time for {what}" for what in piece.get("skipped", ())]
    for record in piece.get("records", ()):
        if record.get("ok") is False:
            what = record.get("case") or f"{record.get('elements')} elements"
            wrong.append(f"{name}: outside its tolerance: {what} {record['dtype']}")
    return wrong


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print the tables."""
    pieces = found["pieces"]
    versions = f"jax {found['jax']}, torch {found['torch']}"
    console.print(f"{found['device']}, {versions}, {found['command']}")
    parts = [
        _table("kernels against the oracle", pieces.get("kernels"), _KERNELS),
        _table("large caches", pieces.get("large_cache"), _LARGE),
        _table("attention calls", pieces.get("kernel_times"), _TIMES),
        _table("first token, and each later one", {"records": found["figures"]}, _FIGURES),
        _table("workers in one batch", {"records": [found["workers"]]}, _WORKERS),
        _table("training", pieces.get("train"), _TRAIN),
    ]
    console.print(Group(*[part for part in parts if part is not None]))
    for line in found["wrong"]:
        console.print(f"not as it should be: {line}")
    if found["ok"]:
        console.print("as it should be")
    else:
        console.print("see the lines above, and the logs beside the JSON file")


_KERNELS = ("case", "dtype", "cache_dtype", "passes", "error", "gradient_errors", "ok")
_LARGE = ("elements", "dtype", "read_back", "neighbours_untouched", "errors", "ok")
_TIMES = (
    "case",
    "cache_dtype",
    "implementation",
    "seconds",
    "times_floor",
    "bytes_per_s",
    "flops_per_s",
)
_FIGURES = (
    "question",
    "ttft_branches_s",
    "floor_s",
    "ratio_to_floor",
    "next_token_s",
    "next_token_floor_s",
    "ttft_text_s",
    "torch_text_s",
    "torch_published_s",
)
_WORKERS = (
    "workers_rows",
    "workers_new_tokens",
    "workers_s",
    "workers_floor_s",
    "torch_workers_s",
    "workers_over_torch",
)
_TRAIN = ("model", "tokens", "step_s", "tokens_per_s", "of_matmul_rate", "loss")


def _table(title: str, piece: Mapping[str, Any] | None, columns: Iterable[str]) -> Table | None:
    """Return a table of a piece's records; None if it has none."""
    records = [record for record in (piece or {}).get("records", ()) if record]
    if not records:
        return None
    table = Table(title=title, title_justify="left", box=box.ASCII2)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for record in records:
        table.add_row(*[_cell(record.get(column)) for column in columns])
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return str(value)
