"""A store of Google Cloud Storage on this machine, which the real clients talk to.

It ignores conditions of writes, and its renames are copies: nothing here may count on either.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from psynth_jax.storage.paths import BucketPath

BUCKET = "psynth-test"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the store; the environment names it to google-cloud-storage, gcsfs and tensorstore."""
    port = free_port()
    folder = tmp_path_factory.mktemp("store")
    program = str(Path(__file__).with_name("store.py"))
    command = [
        sys.executable,
        program,
        "start",
        "--host=127.0.0.1",
        f"--port={port}",
        "--in-memory",
        f"--default-bucket={BUCKET}",
    ]
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    os.environ["STORAGE_EMULATOR_HOST"] = os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
    try:
        wait_for(f"{address}/storage/v1/b/{BUCKET}/o", process)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the store answers."""
    for _ in range(600):
        assert process.poll() is None, "the store did not start"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the store does not answer")


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BucketPath:
    """A folder of the bucket that no other test uses; copies of what is read lie in a cache of this test."""
    monkeypatch.setenv("PSYNTH_CACHE", str(tmp_path / "cache"))
    return BucketPath(f"gs://{BUCKET}/{request.node.name.translate({ord('['): '-', ord(']'): None})}")


@pytest.fixture(autouse=True)
def _programs_stay_with_their_test() -> Iterator[None]:
    """Forget where a command has kept its compiled programs: no other test is to read them there."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
