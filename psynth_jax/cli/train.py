"""`psynth train`: run a training config, or continue it; `psynth export`: write the adapter of a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from psynth_jax.cli.setting import activity, console, load, start_jax, write_json

if TYPE_CHECKING:
    from psynth_jax.training.config import TrainConfig
    from psynth_jax.training.reporter import OnStep
    from psynth_jax.training.trainer import Trainer

TERMINATED = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/training.md", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as train.steps=100")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Train mapper and adapter; a run whose WORKDIR has a checkpoint goes on where it stands."""
    import jax

    from psynth_jax.training.config import read_config
    from psynth_jax.training.distributed import start_processes

    settings = read_config(config, overrides or ())
    with activity("waiting for the other processes of the job"):
        start_processes(settings.distributed)
    with _watch(settings) as on_step:
        trainer = _prepared(settings, on_step)
        begin = trainer.step
        if begin:
            console.print(f"continuing {settings.workdir} after step {begin}")
        for task, reasons in trainer.dropped.items():
            for reason, count in reasons.items():
                console.print(f"{task}: {count} examples are left out: they have {reason}")
        outcome = trainer.run()
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
        console.print(f"{outcome.reason} at step {outcome.step}; the adapter is in {outcome.adapter}")
    if outcome.reason == "terminated":
        raise typer.Exit(TERMINATED)  # so that who started it does not take it for done


def export(
    workdir: Annotated[Path, typer.Argument(help="of a run", show_default=False)],
    into: Annotated[Path, typer.Option(help="directory of the adapter", show_default=False)],
    step: Annotated[str, typer.Option(help="latest, best (by evaluation loss), or a number")] = "latest",
    dtype: Annotated[str | None, typer.Option(help="of the LoRA: float32 or bfloat16; default: float32")] = None,
) -> None:
    """Write the adapter of a checkpoint."""
    from psynth_jax.training.config import read_config

    settings = read_config(workdir / "config.json", (f"workdir={workdir}",))
    trainer = _prepared(settings, None)
    reached = trainer.take(step)
    console.print(f"the adapter of step {reached} is in {trainer.export(into, dtype)}")


def _prepared(settings: TrainConfig, on_step: OnStep | None) -> Trainer:
    from psynth_jax.training.tasks import load_tasks
    from psynth_jax.training.trainer import Trainer

    start_jax(settings.mesh)
    data, evaluation = load_tasks(settings)
    model = load(settings.model, settings.dtype, settings.mesh)
    return Trainer(settings, model, data, evaluation, on_step)


@contextlib.contextmanager
def _watch(settings: TrainConfig) -> Iterator[OnStep]:
    """Show a progress bar on a terminal, a line now and then elsewhere."""
    last = min(settings.train.steps, settings.train.stop_at or settings.train.steps)
    if not console.is_terminal:

        def line(step: int, numbers: Mapping[str, Any]) -> None:
            if "eval_loss" in numbers or step % settings.train.log_every == 0 or step == last:
                console.print(f"step {step}/{last}  {_described(numbers)}")

        yield line
        return
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=last)

        def advance(step: int, numbers: Mapping[str, Any]) -> None:
            if "eval_loss" in numbers:
                progress.console.print(f"step {step}  {_described(numbers)}")
            else:
                progress.update(task, completed=step, description=_described(numbers))

        yield advance


def _described(numbers: Mapping[str, Any]) -> str:
    if "eval_loss" in numbers:
        return f"evaluation loss {numbers['eval_loss']:.4f}"
    tokens = sum(numbers[f"{kind}_tokens_per_s"] for kind in ("branch", "prompt", "target"))
    used = "" if numbers["mfu"] is None else f"  MFU {numbers['mfu']:.1%}"
    return f"loss {numbers['loss']:.4f}  {tokens:,.0f} tokens/s  {numbers['step_seconds']:.2f} s{used}"
