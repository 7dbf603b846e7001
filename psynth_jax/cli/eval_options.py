"""The options of `psynth eval`, by name; what they default to stands with the command."""

from __future__ import annotations

from typing import Annotated

import typer

from psynth_jax.cli import adapter_choice
from psynth_jax.cli.options import BENCHMARKS, METHODS

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="[BENCHMARK]",
        help=f"whose workers write live: {BENCHMARKS}, or one of another package; none: --data holds records",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="file of records with answers, or of the benchmark's rows (default: those on the hub); - for stdin"),
]
Into = Annotated[
    str | None,
    typer.Option(help="folder for rows and summary; rows that are there are not run again; a benchmark needs none"),
]
Methods = Annotated[str | None, typer.Option(help=f"some of {METHODS}, with commas between; text,branches, if not given")]
AdapterName = Annotated[str | None, typer.Option(help=adapter_choice.HELP)]
TextAdapter = Annotated[
    str | None,
    typer.Option(help="adapter (directory or hub id): a LoRA that was trained on pasted texts, for text-lora"),
]
Limit = Annotated[int | None, typer.Option(help="ask the first so many questions only")]
Batch = Annotated[int, typer.Option(help="questions that are answered at once; 1 for the TTFT of a question alone")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(help="longest answer, in tokens; if not given, 32 for records, or what the benchmark says"),
]
FinalAnswer = Annotated[
    bool,
    typer.Option("--final-answer", help="of records: score only what stands behind the last `Answer:`"),
]
Temperature = Annotated[float, typer.Option(help="of answers; 0 is greedy")]
Seed = Annotated[int, typer.Option(help="of the bootstrap, and of sampling")]
Workers = Annotated[int | None, typer.Option(help="live workers of a question; 3, if not given")]
Roles = Annotated[
    str | None,
    typer.Option(help="YAML file of workers' roles, or default; none: all workers are asked the same"),
]
WorkerTemperature = Annotated[float | None, typer.Option(help="of workers; 0.6, if not given")]
WorkerTopP = Annotated[float | None, typer.Option(help="of workers; 0.95, if not given")]
WorkerMaxNewTokens = Annotated[
    int | None,
    typer.Option(help="longest text of a worker, in tokens; if not given, what the benchmark says"),
]
Revision = Annotated[str | None, typer.Option(help="of the benchmark's data on the hub")]
Answers = Annotated[
    str | None,
    typer.Option(help='score given answers, without a model: JSON lines {"id": "0", "text": "..."}'),
]
ShardPart = Annotated[
    str | None,
    typer.Option(help="ask a part of the questions, as in 2/4; several processes may share --into"),
]
GateChoice = Annotated[
    str | None,
    typer.Option(help="for the method gated: a threshold from 0 to 1, or a file that --calibrate wrote"),
]
Calibrate = Annotated[
    bool,
    typer.Option("--calibrate", help="choose a gate on half of the questions: DIR/gate.json"),
]
