"""`psynth train`: run a training config, or continue it; `psynth export`: write the adapter of a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psynth_jax.cli.checks import check_dtype
from psynth_jax.cli.setting import activity, console, load, start_jax, write_json
from psynth_jax.cli.template_option import TemplateOption, template_variables

if TYPE_CHECKING:
    from psynth_jax.cli.train_view import Watcher
    from psynth_jax.model import Model
    from psynth_jax.training.config import TrainConfig
    from psynth_jax.training.trainer import Outcome

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended
EXIT_CODES = {"terminated": TERMINATED, "interrupted": INTERRUPTED}  # so that who started it does not take it for done


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/training.md", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as train.steps=100")] = None,
    template: TemplateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Train mapper and adapter; a run whose WORKDIR has a checkpoint goes on where it stands."""
    from psynth_jax.cli.train_view import ends_process, terminal_may_be_gone
    from psynth_jax.training.config import read_config
    from psynth_jax.training.distributed import start_processes
    from psynth_jax.training.start import train as train_here

    given = template_variables(template) or {}
    changes = [f"template.{name}={json.dumps(value)}" for name, value in given.items()]
    settings = read_config(config, [*(overrides or ()), *changes])
    with activity("waiting for the other processes of the job"):
        start_processes(settings.distributed)
    start_jax(settings.mesh)
    with _watch(settings) as watch:
        loads, says, processes = _loads(settings, watch), _says(watch), os.cpu_count() or 1
        outcome = train_here(settings, loads, watch, says, ends_process(console), processes)
    with terminal_may_be_gone():
        _tell(settings, outcome, as_json=as_json)
    if outcome.reason in EXIT_CODES:
        raise typer.Exit(EXIT_CODES[outcome.reason])


def _tell(settings: TrainConfig, outcome: Outcome, *, as_json: bool) -> None:
    import jax

    if as_json:
        found: dict[str, Any] = {
            "workdir": settings.workdir,
            "begin": outcome.begin,
            "step": outcome.step,
            "reason": outcome.reason,
            "adapter": str(outcome.adapter),
        }
        write_json(found)
    elif jax.process_index() == 0:
        ended = {
            "done": f"done, after step {outcome.step}",
            "stop_at": f"stopped after step {outcome.step}, as train.stop_at says",
            "terminated": f"terminated: saved after step {outcome.step}, the same command continues",
            "interrupted": f"interrupted: saved after step {outcome.step}, the same command continues",
        }
        console.print(f"{ended[outcome.reason]}; the adapter is in {outcome.adapter}", soft_wrap=True)


def export(
    workdir: Annotated[str, typer.Argument(help="of a run: a folder, or gs://...", show_default=False)],
    into: Annotated[str, typer.Option(help="directory of the adapter, or gs://...", show_default=False)],
    step: Annotated[str, typer.Option(help="latest, best (by evaluation loss), or a number")] = "latest",
    dtype: Annotated[str | None, typer.Option(help="of the LoRA: float32 or bfloat16; default: float32")] = None,
) -> None:
    """Write the adapter of a checkpoint."""
    from psynth_jax.training.checkpoint import CheckpointReader
    from psynth_jax.training.config import read_run_config
    from psynth_jax.training.start import prepare
    from psynth_jax.training.trainer import check_continues

    if dtype is not None:
        check_dtype(dtype)
    settings = read_run_config(workdir)
    reader = CheckpointReader(workdir)
    reached = reader.find(step)
    check_continues(settings, reader.about(reached))
    start_jax(settings.mesh)
    with _watch(settings) as watch:
        trainer = prepare(settings, _loads(settings, watch), watch, _says(watch), str(reached))
        adapter = trainer.export(into, dtype)
    console.print(f"the adapter of step {reached} is in {adapter}")


def _says(watch: Watcher) -> Callable[[str], None]:
    """Return what says a few words once, whatever number of processes there is."""
    import jax

    from psynth_jax.training.preemption import SAVING

    def say(text: str) -> None:
        if jax.process_index() == 0 or text == SAVING:  # Ctrl-C is answered where it was pressed
            watch.say(text)

    return say


def _loads(settings: TrainConfig, watch: Watcher) -> Callable[[], Model]:
    def loaded() -> Model:
        watch.pause()  # loading has a line of its own on a terminal
        if not console.is_terminal:
            _says(watch)(f"loading {settings.model} ...")
        return load(settings.model, settings.dtype, settings.mesh, "stacked")

    return loaded


def _watch(settings: TrainConfig) -> contextlib.AbstractContextManager[Watcher]:
    from psynth_jax.cli.train_view import watching

    return watching(settings, console)
