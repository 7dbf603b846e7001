"""`psynth bench kernel --tune`: what it measures and keeps, and that other commands use it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from psynth_jax.bench import tune as tuning
from psynth_jax.bench.tuning_file import table_file
from psynth_jax.ops.branch_attention import tuned
from psynth_jax.ops.branch_attention.tuning_xla import XlaTiles
from tests.cli.conftest import Command

SHAPE = ("--model", "smollm2-135m", "--branches", 2, "--branch-tokens", 200, "--implementation", "xla", "--repeats", 1)
KEY = "xla tokens=1 group=3 kv_heads=3 width=64 itemsize=4 cached=4 slots=256"
HEURISTIC, FASTEST = XlaTiles(1, 256), XlaTiles(1, 64)


@pytest.fixture(autouse=True)
def file(psynth: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep tilings in a folder of the test's own, and measure nothing large next to the call."""
    monkeypatch.setenv("PSYNTH_CACHE", str(tmp_path))
    monkeypatch.setattr("psynth_jax.bench.rates.COPY_BYTES", 1 << 12)
    monkeypatch.setattr("psynth_jax.bench.rates.MATMUL", 16)
    return table_file(tuned.local_kind())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[XlaTiles, float]:
    """Say how long tiles take, in place of the clock: they run, once each, and who is faster is not left to the machine."""
    seconds = {HEURISTIC: 1.0, XlaTiles(1, 128): 0.9, FASTEST: 0.8}

    def in_turn(measures: Mapping[XlaTiles, Callable[[], float]], repeats: int) -> dict[XlaTiles, float]:
        assert all(measure() > 0 for measure in measures.values())
        return {tiles: seconds[tiles] for tiles in measures}

    monkeypatch.setattr(tuning, "in_turn", in_turn)
    return seconds


def tune(psynth: Command, *more: object) -> Any:
    return psynth("bench", "kernel", *SHAPE, "--tune", *more, "--json").json


def test_real_measurements(psynth: Command, file: Path) -> None:
    found = tune(psynth)
    assert (found["bench"], found["key"], found["file"], found["repeats"]) == ("kernel", KEY, str(file), 1)
    assert len(found["candidates"]) == 3 and all(each["seconds"] > 0 for each in found["candidates"])
    assert [each["tiles"]["slots"] for each in found["candidates"] if each["heuristic"]] == [256]
    assert found["ratio"] == pytest.approx(found["heuristic_seconds"] / found["best_seconds"])
    assert file.exists() == found["won"] == (found["best_tiles"] != found["heuristic_tiles"])


@pytest.mark.slow
def test_what_wins_is_kept_and_used(psynth: Command, file: Path, clock: dict[XlaTiles, float]) -> None:
    plain = ("bench", "kernel", *SHAPE, "--json")
    before = psynth(*plain).json
    assert (before["xla_tiles"], before["tuned"]) == (dataclasses.asdict(HEURISTIC), False)
    found = tune(psynth)
    assert (found["won"], found["best_tiles"]) == (True, dataclasses.asdict(FASTEST))
    assert (found["heuristic_seconds"], found["best_seconds"], found["ratio"]) == (1.0, 0.8, 1.25)
    kept = json.loads(file.read_text())["entries"][KEY]
    assert kept == {
        "tiles": dataclasses.asdict(FASTEST),
        "case": "smollm2-135m-t1-2x200",
        "heuristic_seconds": 1.0,
        "seconds": 0.8,
        "repeats": 1,
        "jax": jax.__version__,
    }
    after = psynth(*plain).json
    assert (after["xla_tiles"], after["tuned"]) == (dataclasses.asdict(FASTEST), True)
    assert after["largest_error"] < 1e-5


@pytest.mark.slow
def test_a_little_faster_is_not_enough(psynth: Command, file: Path, clock: dict[XlaTiles, float]) -> None:
    tune(psynth)
    clock[FASTEST] = clock[XlaTiles(1, 128)] = 0.96
    found = tune(psynth)
    assert (found["won"], found["best_tiles"], found["ratio"]) == (False, dataclasses.asdict(HEURISTIC), 1.0)
    assert json.loads(file.read_text())["entries"] == {}  # what stood there was measured before


def test_a_wrong_candidate_is_told_and_not_taken(
    psynth: Command, clock: dict[XlaTiles, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tuning._compiled

    def spoilt(call: Any, operands: Any, table: tuned.Table) -> Any:
        run = compiled(call, operands, table)
        return (lambda: 1.01 * run()) if FASTEST in table.tilings.values() else run

    monkeypatch.setattr(tuning, "_compiled", spoilt)
    found = tune(psynth)
    assert found["best_tiles"] == {"tokens": 1, "slots": 128}
    (told,) = [each for each in found["candidates"] if "error" in each]
    assert told["tiles"] == dataclasses.asdict(FASTEST) and "the output differs by 0.01" in told["error"]


def test_a_candidate_that_does_not_compile_is_told(
    psynth: Command, clock: dict[XlaTiles, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tuning._compiled

    def refused(call: Any, operands: Any, table: tuned.Table) -> Any:
        if FASTEST in table.tilings.values():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in vmem\nand more")
        return compiled(call, operands, table)

    monkeypatch.setattr(tuning, "_compiled", refused)
    done = psynth("bench", "kernel", *SHAPE, "--tune")
    assert (done.code, done.out) == (0, "")
    for shown in ("tokens 1, slots 256 (heuristic)", "RESOURCE_EXHAUSTED: Ran out", "tokens 1, slots 128"):
        assert shown in done.err
    assert "and more" not in done.err


@pytest.mark.slow
def test_psynth_run_uses_the_table(psynth: Command, file: Path, model_directory: Path) -> None:
    run = ("run", "Why?", "--model", model_directory, "--branch", "a b c", "--max-new-tokens", 2, "--json")

    def asked() -> dict[tuned.Key, tuned.Asked]:
        return {each.key: each for each in tuned.asked(lambda: psynth(*run).json)}

    before = asked()
    (decoding,) = [key for key in before if dict(key.sizes)["tokens"] == 1]
    assert before[decoding].chosen == before[decoding].heuristic
    tiles = {"tokens": 1, "slots": 16}
    file.parent.mkdir()
    table = {"format": 1, "device_kind": tuned.local_kind(), "entries": {str(decoding): {"tiles": tiles}}}
    file.write_text(json.dumps(table))
    after = asked()
    assert after[decoding].chosen == XlaTiles(**tiles)
    assert all(each.chosen == each.heuristic for key, each in after.items() if key != decoding)


def test_a_damaged_table_ends_every_command(psynth: Command, file: Path) -> None:
    file.parent.mkdir()
    file.write_text("{}")
    for command in (("info",), ("bench", "kernel", *SHAPE), ("bench", "kernel", *SHAPE, "--tune")):
        done = psynth(*command)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: {file} is no table of tilings: it has no entries")


@pytest.mark.parametrize(
    ("implementation", "message"),
    [
        ("reference", "implementation reference has no tilings"),
        ("pallas_tpu", "implementation pallas_tpu needs a TPU"),
        ("pallas_gpu", "implementation pallas_gpu needs a GPU"),
    ],
)
def test_what_cannot_be_tuned_here(psynth: Command, implementation: str, message: str) -> None:
    if jax.default_backend() == implementation.removeprefix("pallas_"):
        pytest.skip("the default device runs this kernel, so it can be tuned here")
    done = psynth("bench", "kernel", *SHAPE, "--tune", "--implementation", implementation)
    assert done.code == 2 and message in done.err
