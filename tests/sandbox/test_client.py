"""What the client says when the server or a supervisor fails it."""

from __future__ import annotations

import socket
import sys

import pytest

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import client
from psynth_jax.sandbox.limits import Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes need Linux")

DIED = "the supervisor of the sandbox has died; was it killed?"


def ask_with(content: bytes) -> None:
    client.ask(client.job_for("landlock", content, {}, Limits()))


@pytest.mark.parametrize("size", [1, 10_000_000])
def test_a_supervisor_that_is_gone(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    monkeypatch.setattr(client, "_connection", lambda: ours)
    with pytest.raises(SandboxError) as raised:
        ask_with(b"x" * size)
    assert str(raised.value) == DIED
    assert ours.fileno() == -1


def test_a_server_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_server", None)
    monkeypatch.setattr(client.sys, "executable", "/nowhere/python")
    with pytest.raises(SandboxError) as raised:
        ask_with(b"pass")
    told = "[Errno 2] No such file or directory: '/nowhere/python'"
    assert str(raised.value) == f"the server of the sandbox cannot be reached: {told}"


def test_a_server_that_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    theirs.close()
    server = object.__new__(client._Server)
    server.control = ours
    made = []

    def pair() -> tuple[socket.socket, socket.socket]:
        made.extend(socket.socket(fileno=each.detach()) for each in real_pair())
        return made[0], made[1]

    real_pair = socket.socketpair
    monkeypatch.setattr(client.socket, "socketpair", pair)
    with ours, pytest.raises(OSError, match="Broken pipe"):
        server.connect()
    assert [each.fileno() for each in made] == [-1, -1]
