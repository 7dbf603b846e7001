"""What the client, the server and the supervisors say to each other: JSON, its length first.

8 bytes: length | JSON, UTF-8
"""

from __future__ import annotations

import base64
import dataclasses
import json
import socket
import struct
from typing import Any

from psynth_jax.sandbox.limits import Limits
from psynth_jax.sandbox.runtime import Runtime

_LENGTH = struct.Struct(">Q")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that the client asks for."""

    program: bytes
    files: dict[str, bytes]
    limits: Limits
    backend: str
    runtime: Runtime
    bubblewrap: str | None  # path of the executable

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` makes a job of."""
        return {
            "program": to_text(self.program),
            "files": {name: to_text(content) for name, content in self.files.items()},
            "limits": dataclasses.asdict(self.limits),
            "backend": self.backend,
            "runtime": dataclasses.asdict(self.runtime),
            "bubblewrap": self.bubblewrap,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Job:
        """Return the job that `to_json` wrote."""
        runtime = value["runtime"]
        return Job(
            program=to_bytes(value["program"]),
            files={name: to_bytes(content) for name, content in value["files"].items()},
            limits=Limits(**value["limits"]),
            backend=value["backend"],
            runtime=Runtime(runtime["python"], tuple(runtime["paths"])),
            bubblewrap=value["bubblewrap"],
        )


def to_text(content: bytes) -> str:
    """Return bytes as text that JSON can hold."""
    return base64.b64encode(content).decode("ascii")


def to_bytes(text: str) -> bytes:
    """Return the bytes that `to_text` wrote."""
    return base64.b64decode(text)


def send(connection: socket.socket, value: dict[str, Any]) -> None:
    """Send one message.  Raises `OSError` where the other side is gone."""
    content = json.dumps(value).encode()
    connection.sendall(_LENGTH.pack(len(content)) + content)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Receive one message; None where the other side has ended without one."""
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    content = _exactly(connection, _LENGTH.unpack(head)[0])
    if content is None:
        return None
    message: dict[str, Any] = json.loads(content)
    return message


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    content = bytearray()
    while len(content) < count:
        part = connection.recv(min(count - len(content), 1 << 20))
        if not part:
            return None
        content += part
    return bytes(content)
