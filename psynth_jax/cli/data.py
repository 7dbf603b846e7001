"""`psynth data`: prepare what is trained and evaluated on, and look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from psynth_jax.cli import data_view
from psynth_jax.cli.attempts import attempts
from psynth_jax.cli.data_progress import progress
from psynth_jax.cli.options import SOURCES, AsJson
from psynth_jax.cli.setting import console, write_json
from psynth_jax.cli.template_option import TemplateOption, template_variables
from psynth_jax.errors import InputError
from psynth_jax.storage.paths import as_path

if TYPE_CHECKING:
    from psynth_jax.convert.stream import ModelStream
    from psynth_jax.data.shards import Shard
    from psynth_jax.tokenizer import Tokenizer

data = typer.Typer(help="Prepare data for training and evaluation, and look at it.")

data.command()(attempts)

Prepared = Annotated[str, typer.Argument(help="what `psynth data prepare` wrote: the directory of one task or of several")]


@data.command()
def prepare(
    source: Annotated[str, typer.Argument(help=SOURCES)],
    given: Annotated[
        str | None,
        typer.Argument(metavar="[INPUT]", help="file, directory or hub id; default: the source's own data set"),
    ] = None,
    into: Annotated[str | None, typer.Option(help="tokenised examples: each task's in DIR/<task>", metavar="DIR")] = None,
    records: Annotated[
        str | None, typer.Option(help="write records as JSON lines instead; .gz is gzipped", metavar="FILE")
    ] = None,
    model: Annotated[str | None, typer.Option(help="whose tokens: preset, directory, .gguf file, or hub id")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="key=value for the source, as in kinds=lookup,judge for synthetic; may be repeated"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="only the first so many records")] = None,
    seed: Annotated[int | None, typer.Option(help="for a source that draws")] = None,
    split: Annotated[
        str | None, typer.Option(help="of a directory, a data set on the hub, or what is generated; not of a file")
    ] = None,
    config: Annotated[str | None, typer.Option(help="of the data set, where it has several")] = None,
    revision: Annotated[str | None, typer.Option(help="of the data set on the hub")] = None,
    template: TemplateOption = None,
    as_json: AsJson = False,
) -> None:
    """Turn the rows of a source into tokenised examples (--into and --model), or into records (--records)."""
    from psynth_jax.convert.load import open_model
    from psynth_jax.data.prepare import PrepareOptions, check, name_of, prepare_examples, prepare_records

    asked = PrepareOptions.parse(
        {"source": source, "input": given, "options": tuple(option or ()), "limit": limit, "seed": seed}
        | {"split": split, "config": config, "revision": revision}
    )
    variables = template_variables(template)
    examples = into is not None and model is not None and records is None
    if not examples and (records is None or into is not None or model is not None or variables is not None):
        raise InputError("give --into DIR and --model M for tokenised examples, or --records FILE alone for texts")
    check(asked, into, records)  # before a model is opened: that may take a while
    with progress(console, limit) as stage:
        if into is not None and model is not None:
            stage.says(f"opening the tokenizer of {model}")
            opened = open_model(model)
            stage.says("reading")
            tokenizer, size = _tokenizer(opened, model), opened.config.vocab_size
            if variables is not None:
                tokenizer = tokenizer.with_template(variables)
            tally = prepare_examples(asked, into, tokenizer, model, stage.watch, size)
        else:
            assert records is not None
            stage.says("reading")
            tally = prepare_records(asked, records, stage.watch)
    facts: dict[str, Any] = {
        "source": source,
        "input": given,
        "into": name_of(as_path(into or records or "")),
        "rows": tally.rows,
    }
    facts |= {"tasks": dict(tally.tasks), "dropped": dict(tally.dropped)}
    if into is not None:
        facts["directories"] = {task: name_of(as_path(into) / task) for task in tally.tasks}
    if as_json:
        write_json(facts)
    else:
        console.print(data_view.prepared(facts))


@data.command()
def show(
    directory: Prepared,
    number: Annotated[int, typer.Option(help="which example, from 0")] = 0,
    model: Annotated[str | None, typer.Option(help="whose tokens they are; default: as it was prepared")] = None,
    as_json: AsJson = False,
) -> None:
    """Print an example as text: prompt, branch by branch, target."""
    from psynth_jax.convert.load import open_model
    from psynth_jax.data.counts import counted
    from psynth_jax.data.shards import Shard, open_shards

    shards = open_shards(directory)
    if len(shards) > 1:
        raise InputError(f"{directory} has several tasks, show one: {', '.join(str(shard.directory) for shard in shards)}")
    shard = shards[0]
    if not 0 <= number < len(shard):
        numbers = "number 0" if len(shard) == 1 else f"0 to {len(shard) - 1}"
        raise InputError(
            f"there is no example {number} in {shard.directory}: it has {counted(len(shard), 'example')}, {numbers}"
        )
    name = model or shard.info["model"]
    tokenizer = _tokenizer(open_model(name), name)
    facts = _decoded(Shard(shard.directory, tokenizer.fingerprints), number, tokenizer)
    if as_json:
        write_json(facts)
    else:
        console.print(data_view.example(facts))


@data.command()
def info(directory: Prepared, as_json: AsJson = False) -> None:
    """Tell how many examples there are, how long their parts are, and what was dropped."""
    from psynth_jax.data.shards import open_shards

    described = {shard.task: _described(shard) for shard in open_shards(directory)}
    if as_json:
        write_json({"directory": str(directory), "tasks": described})
    else:
        console.print(data_view.tasks(described))


def _tokenizer(opened: ModelStream, model: str) -> Tokenizer:
    if opened.tokenizer is None:
        raise InputError(f"{model} has no tokenizer: nothing can be turned into its tokens")
    return opened.tokenizer


def _decoded(shard: Shard, number: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return an example as text, special tokens included."""
    from psynth_jax.data.example import Lengths

    def text(tokens: Any) -> str:
        return str(tokenizer.backend.decode(tokens.tolist(), skip_special_tokens=False))

    example = shard[number]
    return {
        "task": shard.task,
        "id": example.id,
        "number": number,
        "count": len(shard),
        "prompt": text(example.prompt),
        "pasted": text(example.pasted),
        "branches": [
            {
                "prefix": text(branch.prefix),
                "text": text(branch.kept),
                "prefix_tokens": len(branch.prefix),
                "tokens": len(branch.kept),
            }
            for branch in example.branches
        ],
        "target": text(example.target),
        "lengths": dict(zip(Lengths._fields, shard.lengths[number].tolist(), strict=True)),
    }


def _described(shard: Shard) -> dict[str, Any]:
    import numpy as np

    from psynth_jax.data.example import Lengths

    lengths = {}
    for column, name in enumerate(Lengths._fields):
        values = shard.lengths[:, column]
        points = np.percentile(values, list(data_view.PERCENTILES.values()), method="nearest").tolist()
        total = int(values.sum(dtype=np.int64))
        lengths[name] = dict(zip(data_view.PERCENTILES, points, strict=True)) | {"mean": total / len(values), "total": total}
    kept = ("count", "model", "tokenizer", "vocabulary", "end_id", "template", "source", "dropped")
    return {name: shard.info[name] for name in kept} | {"lengths": lengths}
