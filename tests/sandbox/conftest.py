"""A sandbox for each of: root or a user without capabilities, bubblewrap or Landlock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.sandbox.actors import ROOT, Actor, Sandboxed, closing, worker_python

WAYS = [(who, backend) for who in ("root", "user") for backend in ("bubblewrap", "landlock")]


@pytest.fixture(scope="session")
def actors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Actor]]:
    """Who there can be on this machine."""
    found: dict[str, Actor] = {}
    try:
        for who in ("root", "user"):
            if why_not(who) is None:
                found[who] = Actor(who, tmp_path_factory.mktemp(f"home-{who}"))
        yield found
    finally:
        for actor in found.values():
            actor.close()


def why_not(who: str) -> str | None:
    """Return why the tests cannot act as root, or as another user, or None."""
    if who == "root" and os.geteuid() != 0:
        return "the tests do not run as root"
    if who != "root" and worker_python() is None:
        return f"no Python 3.11 that every user can run, or not {ROOT}"
    if who == "container" and (os.geteuid() != 0 or shutil.which("setpriv") is None):
        return "it takes root, and setpriv"
    return None


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Who, and by which back end; skipped where this machine has it not."""
    who, backend = request.param
    if (reason := why_not(who)) is not None:
        pytest.skip(reason)
    return who, backend


@pytest.fixture
def sandboxed(way: tuple[str, str], actors: dict[str, Actor]) -> Sandboxed:
    """A sandbox that works here; skipped, with the reason, where it does not."""
    who, backend = way
    made = Sandboxed(actors[who], backend)
    if (fault := made.fault()) is not None:
        pytest.skip(f"{backend} as {who}: {fault}")
    return made


@pytest.fixture
def fresh_actor(way: tuple[str, str], tmp_path: Path) -> Iterator[Sandboxed]:
    """A sandbox whose process the test may kill."""
    who, backend = way
    with closing(Actor(who, tmp_path)) as actor:
        made = Sandboxed(actor, backend)
        if (fault := made.fault()) is not None:
            pytest.skip(f"{backend} as {who}: {fault}")
        yield made


# A child, its child, and a thread; each waits for stdin to end.
_FAMILY = """
import os, sys, threading
inner = os.fork()
if inner:
    threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
sys.stdin.read()
"""
Family: TypeAlias = "subprocess.Popen[str]"


@pytest.fixture
def family() -> Iterator[Family]:
    """A process with a child and a second thread."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _FAMILY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        yield process
        process.kill()
