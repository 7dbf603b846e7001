"""Damaged adapters, ours and PEFT's and the published release, and damaged branches."""

from __future__ import annotations

import pytest

import psynth_jax as ps
from tests.fuzz.harness import Command, Kind, Place, Said, Use, called, fuzz
from tests.fuzz.mutations import Damage, damage_bytes, damage_finite, damage_json, damage_safetensors

pytestmark = pytest.mark.filterwarnings("default")


def _convert(adapter: str, to: str = "peft") -> Use:
    """Read all that is there, and write it."""

    def use(place: Place, command: Command) -> Said:
        return command("convert", adapter, place.out / "made", "--to", to, "--base", "hf", "--json")

    return use


def _named(adapter: str) -> Use:
    """Convert without a base: the one that it names, for which the hub is asked if it is none here."""

    def use(place: Place, command: Command) -> Said:
        return command("convert", adapter, place.out / "made", "--to", "psynth")

    return use


@pytest.fixture(scope="module")
def synth(place: Place) -> ps.ParallelSynthesis:
    """One synthesizer for all branches, which compiles what it needs once."""
    return ps.ParallelSynthesis(ps.load_model(place.tree / "hf"))


def _score(folder: str, synth: ps.ParallelSynthesis) -> Use:
    def read() -> None:
        branches = ps.Branches.load(folder)
        repr(branches)
        synth.score("Why?", "Full.", branches)

    return lambda place, command: called(read)


OURS, PEFT = "run/adapter/", "peft/judger_lora/"
KINDS = [
    Kind("psynth_adapter.json", (OURS + "psynth_adapter.json",), damage_json, _convert("run/adapter")),
    Kind("base of an adapter", (OURS + "psynth_adapter.json",), damage_json, _named("run/adapter")),
    Kind(
        "tensors of an adapter",
        (OURS + "adapter.safetensors", OURS + "mapper.safetensors"),
        damage_safetensors,
        _convert("run/adapter"),
    ),
    Kind(
        "adapter, not finite",
        (OURS + "adapter.safetensors", OURS + "mapper.safetensors"),
        damage_finite,
        _convert("run/adapter"),
    ),
    Kind("adapter_config.json", (PEFT + "adapter_config.json",), damage_json, _convert("peft", "psynth")),
    Kind("PEFT alone", (PEFT + "adapter_config.json",), damage_json, _convert("peft/judger_lora", "psynth")),
    Kind("tensors of PEFT", (PEFT + "adapter_model.safetensors",), damage_safetensors, _convert("peft", "psynth")),
    Kind("mapper of the release", ("peft/cache_mapper.pt",), damage_bytes, _convert("peft", "psynth")),
    Kind(
        "notes of the release",
        ("peft/cache_mapper_config.json", "peft/checkpoint_meta.json"),
        damage_json,
        _convert("peft", "psynth"),
    ),
]
BRANCHES = [
    ("branches.json", "branches", damage_json),
    ("branches.safetensors", "branches", damage_safetensors),
    ("branches.json", "branches-int8", damage_json),
    ("branches.safetensors", "branches-int8", damage_safetensors),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged(kind: Kind, place: Place, command: Command) -> None:
    fuzz(kind, place, command)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "folder", "damage"), BRANCHES)
def test_branches(
    file: str, folder: str, damage: Damage, place: Place, command: Command, synth: ps.ParallelSynthesis
) -> None:
    kind = Kind(f"{folder}/{file}", (f"{folder}/{file}",), damage, _score(folder, synth))
    fuzz(kind, place, command)
