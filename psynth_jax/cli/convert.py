"""`psynth convert`, `merge`, `push` and `pull`: models and adapters into other formats, into one, to the hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from psynth_jax.cli.checks import check_choice
from psynth_jax.cli.options import AsJson
from psynth_jax.cli.setting import activity, console, write_json
from psynth_jax.directories import replacing, writing
from psynth_jax.storage.paths import as_path, total_bytes

BaseModel = Annotated[str | None, typer.Option(help="model that the adapter belongs to; default: the one that it names")]


def convert(
    source: Annotated[str, typer.Argument(help="model or adapter: directory, .gguf file, gs://..., preset, hub id")],
    target: Annotated[str, typer.Argument(help="directory to be made, here or in a bucket (gs://...)")],
    to: Annotated[str, typer.Option(help="psynth, hf or peft")],
    base: BaseModel = None,
    merge: Annotated[bool, typer.Option(help="fold the adapter's LoRA into its base; with --to hf")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored")] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a model or an adapter; docs/convert.md has what becomes what."""
    from psynth_jax.convert import convert as conversion

    check_choice("--to", to, "psynth, hf, peft")
    with activity(f"converting {source}"):
        made = conversion.convert(source, target, to, base, merge, dtype)  # type: ignore[arg-type]
    size = total_bytes(as_path(target).expanduser())
    facts: dict[str, Any] = {"kind": made.kind, "source": source, "target": str(target), "to": to, "base": made.base}
    facts |= {"bytes": size, "dropped": list(made.dropped)}
    if as_json:
        write_json(facts)
        return
    console.print(f"{made.kind} of {size / 1e6:,.1f} MB in {target}")
    for part in made.dropped:
        console.print(f"left out, because a plain model cannot hold it: {part}")


def merge(
    first: Annotated[str, typer.Argument(help="adapter: directory or hub id")],
    second: Annotated[str, typer.Argument(help="another adapter of the same base")],
    target: Annotated[str, typer.Argument(help="adapter directory to be made, here or in a bucket (gs://...)")],
    weight: Annotated[float, typer.Option(help="of the first adapter, 0 to 1")] = 0.5,
    how: Annotated[
        str, typer.Option(help="deltas: of what they add; factors: each factor by itself, as published")
    ] = "deltas",
    rank: Annotated[int | None, typer.Option(help="of the result; default: the larger of the two")] = None,
    mapper: Annotated[str, typer.Option(help="first, second or average")] = "average",
    base: BaseModel = None,
    as_json: AsJson = False,
) -> None:
    """Average two adapters."""
    from psynth_jax.convert import convert as conversion
    from psynth_jax.convert.adapter_directory import save_adapter
    from psynth_jax.convert.adapters import find_adapter, load_adapter, training_summary
    from psynth_jax.convert.merging import check_choices, merge_adapters

    check_choices(weight, how, rank, mapper)  # type: ignore[arg-type]
    with activity(f"merging {first} and {second}"):
        for adapter in (first, second):
            find_adapter(adapter)
        model = conversion.open_base(first, base, "float32")
        adapters = (load_adapter(first, model), load_adapter(second, model))
        merged = merge_adapters(*adapters, weight, how, rank, mapper)  # type: ignore[arg-type]
    facts: dict[str, Any] = {"first": first, "second": second, "weight": weight, "how": how, "mapper": mapper}
    facts |= {"rank": merged.adapter.lora.rank if merged.adapter.lora else None, "error": merged.error}
    sources = {"first": training_summary(first), "second": training_summary(second)}
    place = as_path(target)
    with writing(place), replacing(place, (), "an empty directory") as fresh:
        save_adapter(fresh, merged.adapter, model, {"merged": facts, "sources": sources})
    if as_json:
        write_json(facts | {"target": str(target)})
    else:
        console.print(f"adapter in {target}; the cut to its rank lost {merged.error:.2%} of what the average adds")


def push(
    directory: Annotated[Path, typer.Argument(help="model or adapter")],
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub; made if it is not there")],
    private: Annotated[bool, typer.Option(help="make it private, if it is made")] = False,
    message: Annotated[str | None, typer.Option(help="of the commit")] = None,
) -> None:
    """Upload a model or adapter to the hub, as one commit."""
    from psynth_jax.convert import hub

    with activity(f"uploading {directory}"):
        address = hub.push(directory, repository, private, message)
    console.print(f"{directory} is at {address}")


def pull(
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub")],
    target: Annotated[Path, typer.Argument(help="directory to be made")],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit")] = None,
) -> None:
    """Download a model or adapter from the hub, whole or not at all."""
    from psynth_jax.convert import hub

    with activity(f"downloading {repository}"):
        hub.pull(repository, target, revision)
    console.print(f"{repository} is in {target}")
