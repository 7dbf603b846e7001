"""launch/pack.sh and launch/adapter.sh: archives and back, what is missing in one line, the recipe in miniature."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from psynth_jax.data.prepare import known_sources
from tests.processes import ROOT

LAUNCH = ROOT / "launch"


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(LAUNCH)
    yield
    for name in ("archives", "gpu_environment", "pack", "adapter"):
        sys.modules.pop(name, None)


@pytest.fixture
def archives(launch: None) -> ModuleType:
    return importlib.import_module("archives")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".unpacked" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class TestArchives:
    @pytest.fixture
    def packed(self, archives: ModuleType, tmp_path: Path) -> Path:
        files = {"a/large": os.urandom(50_000), "a/b/small": b"x", "empty": b""}
        for name, each in files.items():
            path = tmp_path / "from" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(each)
        paths = {name: tmp_path / "from" / name for name in files}
        pieces = archives.pack(tmp_path / "pack", "data", paths, limit=20_000)
        assert len(pieces) > 2 and all(piece.stat().st_size <= 20_000 for piece in pieces)
        return tmp_path / "pack"

    def test_come_back_as_they_were(self, archives: ModuleType, packed: Path, tmp_path: Path) -> None:
        for _ in range(2):  # the second time nothing is done
            assert archives.unpack(packed, tmp_path / "to") == ["data"]
        assert content(tmp_path / "to") == content(tmp_path / "from")

    def test_what_was_changed_there_since_stays(self, archives: ModuleType, packed: Path, tmp_path: Path) -> None:
        archives.unpack(packed, tmp_path / "to")
        (tmp_path / "to" / "empty").write_text("mine")
        archives.unpack(packed, tmp_path / "to")
        assert (tmp_path / "to" / "empty").read_text() == "mine"

    def test_packed_again_old_pieces_go(self, archives: ModuleType, packed: Path, tmp_path: Path) -> None:
        archives.pack(packed, "data", {"empty": tmp_path / "from" / "empty"})
        assert sorted(path.name for path in packed.iterdir()) == ["SHA256SUMS", "data.tar-1-of-1"]
        archives.unpack(packed, tmp_path / "to")
        assert content(tmp_path / "to") == {"empty": b""}

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            ("data.tar-2-of-4", "data.tar-2-of-4 is missing: upload it too"),
            ("SHA256SUMS", "has no line for data.tar: upload it too"),
            ("data.tar-*", "lacks the archive data.tar-1-of-"),
        ],
    )
    def test_what_is_missing_is_named(
        self, archives: ModuleType, packed: Path, tmp_path: Path, missing: str, message: str
    ) -> None:
        gone = list(packed.glob(missing))
        assert gone
        for path in gone:
            path.unlink()
        with pytest.raises(archives.Wrong, match=message):
            archives.unpack(packed, tmp_path / "to")

    def test_a_damaged_one_is_not_extracted(self, archives: ModuleType, packed: Path, tmp_path: Path) -> None:
        piece = packed / "data.tar-1-of-4"
        damaged = bytearray(piece.read_bytes())
        damaged[600] ^= 1
        piece.write_bytes(damaged)
        with pytest.raises(archives.Wrong, match="is not what was packed"):
            archives.unpack(packed, tmp_path / "to")
        assert not (tmp_path / "to").exists()

    def test_nothing_is_written_outside(self, archives: ModuleType, packed: Path, tmp_path: Path) -> None:
        for old in packed.iterdir():
            old.unlink()
        with tarfile.open(packed / "data.tar-1-of-1", "w") as archive:
            archive.add(tmp_path / "from" / "empty", "../outside")
        sums = subprocess.run(["sha256sum", packed / "data.tar-1-of-1"], capture_output=True, text=True, check=True)
        (packed / "SHA256SUMS").write_text(f"{sums.stdout.split()[0]}  data.tar\n")
        with pytest.raises(archives.Wrong, match="holds what may not be extracted"):
            archives.unpack(packed, tmp_path / "to")
        assert not (tmp_path / "outside").exists()


def command(script: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAUNCH / script, *map(str, words)],
        env=os.environ | {"PSYNTH_PYTHON": sys.executable} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["rank"], "'rank' is not KEY=VALUE"),
            (["workdir=/tmp/x"], "the workdir is INTO/run: give --into"),
            (["--reads", "caches"], "invalid choice: 'caches'"),
            (["--minutes", "0.5"], "--minutes must leave 35 seconds for the save"),
        ],
    )
    def test_of_the_recipe(self, words: list[str], message: str) -> None:
        assert message in last_line(command("adapter.sh", *words))

    @pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
    def test_no_gpu(self, tmp_path: Path) -> None:
        assert "there is no GPU here: --miniature" in last_line(command("adapter.sh", "--into", tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_of_packing(self, tmp_path: Path) -> None:
        assert "is not the workdir of a run in this checkout" in last_line(command("pack.sh", "--run", tmp_path))

    def test_a_package_that_is_missing(self, launch: None, monkeypatch: pytest.MonkeyPatch) -> None:
        environment = importlib.import_module("gpu_environment")
        monkeypatch.setattr(environment, "NEEDED", ("json", "no_such_package", "no_such_package.part"))
        with pytest.raises(environment.Wrong, match=r"lacks no_such_package, no_such_package\.part: run launch/pack"):
            environment.prepared()


def test_recipe_data_are_made_by_known_sources() -> None:
    recipe = yaml.safe_load((ROOT / "configs" / "recipe-data.yaml").read_text(encoding="utf-8"))
    for name, made in recipe.items():
        assert made["source"] in known_sources()
        assert Path(made["file"]).name == made["file"] and "/" not in name
    paths = {
        entry["path"].removeprefix("data/")
        for kind in ("branches", "text")
        for entry in yaml.safe_load((ROOT / "configs" / f"recipe-{kind}.yaml").read_text(encoding="utf-8"))["data"]
        if "path" in entry
    }
    assert paths <= set(recipe), "every folder that the recipes read is made"


@pytest.mark.slow
def test_in_miniature_and_resumed(tmp_path: Path) -> None:
    """The time is over, it goes on, it ends; another recipe is refused."""
    into = tmp_path / "out"
    first = command("adapter.sh", "--miniature", "--into", into, "train.stop_at=2")
    assert first.returncode == 0, first.stderr
    assert "start it again to go on" in first.stderr.splitlines()[-1]
    second = command("adapter.sh", "--miniature", "--into", into)
    assert second.returncode == 0, second.stderr
    starts = [json.loads(line) for line in (into / "starts.jsonl").read_text().splitlines()]
    assert [(each["begin"], each["step"], each["reason"]) for each in starts] == [(0, 2, "stop_at"), (2, 6, "done")]
    assert all(0 < each["filled"] <= 1 and each["step_seconds"] > 0 for each in starts)
    assert json.loads(second.stdout) == starts[1]
    assert (into / "run" / "adapter" / "psynth_adapter.json").is_file()
    assert (into / "run" / "report" / "report.html").is_file()
    summary = json.loads((into / "evaluation" / "summary.json").read_text())
    assert set(summary["methods"]) == {"branches", "identity", "question", "wrong-branches"}
    other = command("adapter.sh", "--miniature", "--into", into, "trainable.rank=8")
    assert "config and checkpoint" in last_line(other) and "disagree" in last_line(other)
