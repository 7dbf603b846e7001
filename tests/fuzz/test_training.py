"""Damaged configs in YAML, metrics, and checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.compiling.workload import read_matrix
from psynth_jax.convert.load import load_model
from psynth_jax.prompts import load_roles
from psynth_jax.training.checkpoint import CheckpointReader
from psynth_jax.training.config import read_config
from psynth_jax.training.curves import read_curves
from psynth_jax.training.report import summarise
from psynth_jax.training.tasks import load_tasks
from psynth_jax.training.trainer import Trainer
from tests.fuzz.files import write_configs
from tests.fuzz.harness import Command, Kind, Place, Said, called, fuzz
from tests.fuzz.mutations import damage_bytes, damage_json, damage_json_lines, damage_yaml

pytestmark = pytest.mark.filterwarnings("default")


def _roles(place: Place, command: Command) -> Said:
    return called(lambda: load_roles("roles.yaml"))


def _matrix(place: Place, command: Command) -> Said:
    def read() -> None:
        for each in read_matrix(Path("matrix.yaml")):
            assert each.slice and each.config
            each.check_window()

    return called(read)


def _config(place: Place, command: Command) -> Said:
    return called(lambda: read_config("train.yaml", ("workdir=elsewhere",)))


def _export_of_nothing(place: Place, command: Command) -> Said:
    """Read a run's config.json as `psynth export` does."""
    return called(lambda: read_config("run/config.json", ("workdir=run",)))


def _metrics(place: Place, command: Command) -> Said:
    return called(lambda: summarise(read_curves(Path("run/metrics.jsonl"))))


_STEP = "run/checkpoints/4/"
_STATE = _STEP + "state/"
KINDS = [
    Kind("roles", ("roles.yaml",), damage_yaml, _roles),
    Kind("matrix", ("matrix.yaml",), damage_yaml, _matrix),
    Kind("train config", ("train.yaml",), damage_yaml, _config),
    Kind("config of a run", ("run/config.json",), damage_json, _export_of_nothing),
    Kind("metrics", ("run/metrics.jsonl",), damage_json_lines, _metrics),
]
CHECKPOINTS = {
    "described": (
        (
            _STEP + "_CHECKPOINT_METADATA",
            _STEP + "about/metadata",
            _STEP + "data/metadata",
            _STEP + "metrics/metrics",
            _STATE + "_METADATA",
            _STATE + "_sharding",
            _STATE + "array_metadatas/process_0",
        ),
        damage_json,
    ),
    "stored": (
        (
            _STATE + "manifest.ocdbt",
            _STATE + "d/b3eb9c642af7fa110b9ea9ac2ab17c3e",
            _STATE + "ocdbt.process_0/manifest.ocdbt",
            _STATE + "ocdbt.process_0/d/04cfebdbf17bd790aac3aa9cb0d7e1b7",
            _STATE + "ocdbt.process_0/d/089b9ab52bfc47eba558d343661a91ac",
        ),
        damage_bytes,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _more_configs(place: Place) -> None:
    write_configs(place.tree)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged(kind: Kind, place: Place, command: Command) -> None:
    fuzz(kind, place, command)


def take(trainer: Trainer, which: str) -> int:
    """Take up a checkpoint, as a run that is resumed does; return its step."""
    reader = CheckpointReader(trainer.workdir)
    step = reader.find(which)
    trainer._take(reader, step)
    return step


@pytest.mark.slow
@pytest.mark.parametrize("which", CHECKPOINTS)
def test_checkpoints(which: str, place: Place, command: Command) -> None:
    """One run is prepared, and takes up each damaged checkpoint as a continued run and `psynth export` do."""
    settings = read_config("run/config.json", ("workdir=run",))
    data, evaluation = load_tasks(settings)
    trainer = Trainer(settings, load_model("hf", layers="stacked"), data, evaluation)

    def use(place: Place, command: Command) -> Said:
        return called(lambda: [take(trainer, "latest"), take(trainer, "best")])

    files, damage = CHECKPOINTS[which]
    kind = Kind(f"checkpoint, {which}", files, damage, use, "run")
    fuzz(kind, place, command)
