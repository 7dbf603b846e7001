"""To the hub and back, by the real client, against a hub that this test runs: `tests/hub.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import psynth_jax as ps
from psynth_jax.convert.convert import convert
from psynth_jax.convert.hub import pull, push
from psynth_jax.errors import InputError
from tests import hub as fake
from tests.tiny import random_lora

Psynth = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[fake.Hub]:
    with fake.running() as server:
        yield server


@pytest.fixture
def psynth(hub: fake.Hub, tmp_path: Path) -> Psynth:
    """The command in a process of its own: where the client finds the hub is decided when it is imported."""

    def run(*arguments: object, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"} | changed
        command = [sys.executable, "-c", "from psynth_jax.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = ps.load_model("tiny-random")
    ps.save_adapter(tmp_path / "adapter", ps.Adapter(random_lora(model.config, 5), None), model)
    return tmp_path / "adapter"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_an_adapter_there_and_back(hub: fake.Hub, psynth: Psynth, adapter: Path, tmp_path: Path) -> None:
    done = psynth("push", adapter, "ann/reader", "--message", "first try")
    assert done.returncode == 0 and f"{hub.address}/ann/reader/commit/" in done.stderr, done.stderr
    assert hub.messages == ["first try"]
    assert hub.large, "nothing was large: the test would not see how large files travel"
    assert {name: x for name, x in hub.repositories["ann/reader"].items() if name[0] != "."} == contents(adapter)
    assert psynth("push", adapter, "ann/reader").returncode == 0, "a second push"
    done = psynth("pull", "ann/reader", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert {name: x for name, x in contents(tmp_path / "back").items() if name[0] != "."} == contents(adapter)


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
def test_an_adapter_is_used_by_its_name(
    hub: fake.Hub, psynth: Psynth, adapter: Path, tmp_path: Path, published: bool
) -> None:
    if published:
        convert(adapter, tmp_path / "published", "peft")
        adapter = tmp_path / "published"
    hub.repositories["ann/reader"] = contents(adapter)
    question = (
        "run",
        "Why?",
        "--model",
        "tiny-random",
        "--branch",
        "Because.",
        "--max-new-tokens",
        6,
        "--json",
        "--adapter",
    )
    there, here = psynth(*question, "ann/reader"), psynth(*question, adapter)
    assert there.returncode == 0, there.stderr
    answers = [done.stdout.split('"answer": ')[1].split('"ttft_s"')[0] for done in (there, here)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_model_is_converted_by_its_name(hub: fake.Hub, psynth: Psynth, tmp_path: Path) -> None:
    convert("tiny-random", tmp_path / "model", "hf")
    hub.repositories["ann/tiny"] = contents(tmp_path / "model") | {"pytorch_model.bin": b"never"}
    done = psynth("convert", "ann/tiny", tmp_path / "ours", "--to", "psynth")
    assert done.returncode == 0, done.stderr
    assert ps.load_model(tmp_path / "ours").fingerprint == ps.load_model("tiny-random").fingerprint
    assert psynth("pull", "ann/tiny", tmp_path / "copy").returncode == 0
    assert contents(tmp_path / "copy") == contents(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_what_is_pulled_has_the_mode_of_the_umask(
    hub: fake.Hub, psynth: Psynth, adapter: Path, tmp_path: Path, mask: int, mode: int
) -> None:
    """And a link to another disk stays a link."""
    hub.repositories["ann/reader"] = contents(adapter)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "reader")
    before = os.umask(mask)
    try:
        done = psynth("pull", "ann/reader", tmp_path / "link")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink()
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "disk" / "reader").iterdir()}
    assert found == dict.fromkeys((path.name for path in adapter.iterdir()), mode)


@pytest.mark.slow
def test_private_and_without_a_token(hub: fake.Hub, psynth: Psynth, adapter: Path, tmp_path: Path) -> None:
    assert psynth("push", adapter, "ann/secret", "--private").returncode == 0
    assert hub.private == {"ann/secret"}
    for arguments in (("push", adapter, "ann/other"), ("pull", "ann/secret", tmp_path / "out")):
        done = psynth(*arguments, HF_TOKEN="hf_wrong")
        assert done.returncode == 2 and done.stderr.startswith("error: 'ann/"), done.stderr
        assert done.stderr.count("\n") == 1 and "hf_wrong" not in done.stderr
    assert not (tmp_path / "out").exists() and "ann/other" not in hub.repositories


def test_a_download_that_breaks_off_leaves_nothing(hub: fake.Hub, psynth: Psynth, adapter: Path, tmp_path: Path) -> None:
    hub.repositories["ann/reader"], hub.broken = contents(adapter), "adapter.safetensors"
    before = sorted(tmp_path.iterdir())
    done = psynth("pull", "ann/reader", tmp_path / "back")
    assert done.returncode == 2 and "the Hugging Face hub does not give it" in done.stderr, done.stderr
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "hf"] == before


def test_what_is_not_there(psynth: Psynth, tmp_path: Path) -> None:
    for arguments in (("pull", "ann/nothing", tmp_path / "out"), ("convert", "ann/nothing", tmp_path / "out", "--to", "hf")):
        done = psynth(*arguments)
        assert done.returncode == 2 and "ann/nothing" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_and_no_name(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="neither a model nor an adapter"):
        push(tmp_path / "photos", "ann/x")
    for name in ("ann", "ann/x/y", "../x"):
        with pytest.raises(InputError, match="must be owner/name"):
            push(adapter, name)
        with pytest.raises(InputError, match="must be owner/name"):
            pull(name, tmp_path / "out")
    with pytest.raises(InputError, match="is not an empty directory"):
        pull("ann/x", adapter)
