"""launch/adapter.sh: the recipe of the adapter that comes along, in one command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from psynth_jax.training.config import read_config
from tests.launcher import RECORD, TOOLS, Launcher
from tests.processes import ROOT

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in TOOLS), reason="git, or a tool of Linux that the scripts need, is missing"
)

FILES = ("hotpotqa_train", "hotpotqa_supported", "2wiki_train", "musique_train", "squad_train")


@pytest.fixture
def here(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


@pytest.fixture
def files(here: Launcher, tmp_path: Path) -> Path:
    folder = tmp_path / "files of mine"
    folder.mkdir()
    for name in (*(f"{name}.json" for name in FILES), "flan_cot.jsonl", "sharegpt.jsonl"):
        (folder / name).touch()
    return folder


def expected(here: Launcher, files: Path, done: set[str]) -> list[list[str]]:
    psynth, model = f"{here.venv}/bin/psynth", ["--model", "smollm2-135m"]
    prepared = [
        ("hotpotqa", "hotpotqa", "hotpotqa_train.json", []),
        ("few", "hotpotqa", "hotpotqa_supported.json", ["--option", "max_contexts=4"]),
        ("2wikimultihopqa", "2wikimultihopqa", "2wiki_train.json", []),
        ("musique", "hotpotqa", "musique_train.json", []),
        ("squad", "squad", "squad_train.json", ["--option", "contexts=3"]),
        ("flan_cot", "flan_cot", "flan_cot.jsonl", []),
        ("sharegpt", "sharegpt", "sharegpt.jsonl", []),
    ]
    return [
        ["bash", f"{here.root}/launch/setup.sh", "demo"],
        *(
            [psynth, "data", "prepare", source, f"{files}/{file}", "--into", f"data/{into}", *model, *options]
            for into, source, file, options in prepared
            if into not in done
        ),
        *(
            ["bash", f"{here.root}/launch/train.sh", f"{here.root}/configs/smollm2-135m-{half}.yaml", "dtype=float32"]
            for half in ("text", "branches")
        ),
        [psynth, "export", "runs/smollm2-135m-branches", "--into", "adapter", "--dtype", "bfloat16"],
    ]


def test_dry_run(here: Launcher, files: Path) -> None:
    assert here.dry("adapter.sh", str(files), "dtype=float32") == expected(here, files, set())


def test_it_goes_on(here: Launcher, files: Path) -> None:
    (here.root / "data" / "few").mkdir(parents=True)
    assert here.dry("adapter.sh", str(files), "dtype=float32") == expected(here, files, {"few"})


def test_what_is_prepared_is_what_the_configs_read(here: Launcher, files: Path) -> None:
    into = {words[words.index("--into") + 1] for words in expected(here, files, set()) if "prepare" in words}
    for half in ("text", "branches"):
        tasks = read_config(ROOT / "configs" / f"smollm2-135m-{half}.yaml").data
        assert {task.path for task in tasks if task.path} == into


def test_a_half_that_is_stopped_ends_it(here: Launcher, files: Path) -> None:
    (here.root / "data").mkdir()
    (here.root / "configs" / "smollm2-135m-text.yaml").touch()
    here.fake_psynth(RECORD + "sys.exit(143 if sys.argv[1] == 'train' else 0)")
    assert here.run("adapter.sh", str(files), cwd=here.root).returncode == 143
    assert [words[1] for words in here.words()] == ["data"] * 7 + ["train"]
