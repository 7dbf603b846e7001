"""`psynth train`: run a training config, or continue it; `psynth export`: write the adapter of a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psynth_jax.cli.checks import check_dtype
from psynth_jax.cli.setting import activity, console, load, start_jax, write_json
from psynth_jax.cli.template_option import TemplateOption, template_variables

if TYPE_CHECKING:
    from psynth_jax.cli.train_view import Watcher
    from psynth_jax.training.config import TrainConfig
    from psynth_jax.training.trainer import Outcome, Trainer

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
    from psynth_jax.training.lock import working_in

    given = template_variables(template) or {}
    changes = [f"template.{name}={json.dumps(value)}" for name, value in given.items()]
    settings = read_config(config, [*(overrides or ()), *changes])
    with activity("waiting for the other processes of the job"):
        start_processes(settings.distributed)
    start_jax(settings.mesh)
    with working_in(settings.workdir, console.print) as hold, _watch(settings) as watch:
        _keep_programs(settings.workdir)
        _check_early(settings)
        trainer = _prepared(settings, watch)
        begin = trainer.step
        watch.pause()
        if begin:
            console.print(f"continuing {settings.workdir} after step {begin}")
        for task, reasons in trainer.dropped.items():
            for reason, count in reasons.items():
                console.print(f"{task}: {count} examples are left out: they have {reason}")
        outcome = trainer.run(hold=hold, end_process=ends_process(console))
    with terminal_may_be_gone():
        _tell(settings, begin, outcome, as_json=as_json)
    if outcome.reason in EXIT_CODES:
        raise typer.Exit(EXIT_CODES[outcome.reason])


def _keep_programs(workdir: str) -> None:
    """Keep compiled programs with the run where its hosts come and go: the next ones compile nothing again."""
    import jax

    from psynth_jax.storage.paths import as_path, is_bucket
    from psynth_jax.synthesis.programs import keep_compiled_programs

    chosen = "JAX_COMPILATION_CACHE_DIR" in os.environ
    if not chosen and (is_bucket(workdir) or jax.process_count() > 1):
        keep_compiled_programs(as_path(workdir) / "compiled")


def _tell(settings: TrainConfig, begin: int, outcome: Outcome, *, as_json: bool) -> None:
    import jax

    if as_json:
        found: dict[str, Any] = {
            "workdir": settings.workdir,
            "begin": begin,
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


def _check_early(settings: TrainConfig) -> None:
    """Find what can be found without the model, which takes long to load: damaged checkpoints, wrong names."""
    from psynth_jax.convert.adapters import find_adapter
    from psynth_jax.training.checkpoint import CheckpointReader
    from psynth_jax.training.trainer import check_continues

    reader = CheckpointReader(settings.workdir)
    if reader.latest is not None:
        check_continues(settings, reader.about(reader.latest))
    for source in (settings.trainable.start, settings.teacher):
        if source is not None:
            find_adapter(source)


def export(
    workdir: Annotated[str, typer.Argument(help="of a run: a folder, or gs://...", show_default=False)],
    into: Annotated[str, typer.Option(help="directory of the adapter, or gs://...", show_default=False)],
    step: Annotated[str, typer.Option(help="latest, best (by evaluation loss), or a number")] = "latest",
    dtype: Annotated[str | None, typer.Option(help="of the LoRA: float32 or bfloat16; default: float32")] = None,
) -> None:
    """Write the adapter of a checkpoint."""
    from psynth_jax.training.checkpoint import CheckpointReader
    from psynth_jax.training.config import read_run_config
    from psynth_jax.training.trainer import check_continues

    if dtype is not None:
        check_dtype(dtype)
    settings = read_run_config(workdir)
    reader = CheckpointReader(workdir)
    reached = reader.find(step)
    check_continues(settings, reader.about(reached))
    start_jax(settings.mesh)
    with _watch(settings) as watch:
        trainer = _prepared(settings, watch, str(reached))
        adapter = trainer.export(into, dtype)
    console.print(f"the adapter of step {reached} is in {adapter}")


def _prepared(settings: TrainConfig, watch: Watcher, checkpoint: str = "latest") -> Trainer:
    import jax

    from psynth_jax.training.preemption import SAVING
    from psynth_jax.training.tasks import load_tasks
    from psynth_jax.training.trainer import Trainer

    def say(text: str) -> None:
        if jax.process_index() == 0 or text == SAVING:  # Ctrl-C is answered where it was pressed
            watch.say(text)

    say("reading examples ...")
    data, evaluation = load_tasks(settings)
    watch.pause()  # loading has a line of its own on a terminal
    if not console.is_terminal:
        say(f"loading {settings.model} ...")
    model = load(settings.model, settings.dtype, settings.mesh)
    return Trainer(settings, model, data, evaluation, watch, say, checkpoint)


def _watch(settings: TrainConfig) -> contextlib.AbstractContextManager[Watcher]:
    from psynth_jax.cli.train_view import watching

    return watching(settings, console)
