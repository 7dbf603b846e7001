"""What a program writes, read from its two pipes until there is more than it may write."""

from __future__ import annotations

import os

_PART = 1 << 16


class Streams:
    """The two pipes, and what has come through them: at most `limit` bytes together."""

    def __init__(self, stdout: int, stderr: int, limit: int) -> None:
        self.limit = limit
        self.over = False
        self.open = {stdout, stderr}
        self._stdout, self._stderr = stdout, stderr
        self._content = {stdout: bytearray(), stderr: bytearray()}
        for pipe in self.open:
            os.set_blocking(pipe, False)

    @property
    def stdout(self) -> bytes:
        """What came on stdout."""
        return bytes(self._content[self._stdout])

    @property
    def stderr(self) -> bytes:
        """What came on stderr."""
        return bytes(self._content[self._stderr])

    def read(self, pipe: int) -> bool:
        """Read a part of what is there; return whether there was anything."""
        try:
            part = os.read(pipe, _PART)
        except BlockingIOError:
            return False
        if not part:
            self.open.discard(pipe)
            return False
        held = sum(len(content) for content in self._content.values())
        self._content[pipe] += part[: self.limit - held]
        if held + len(part) > self.limit:
            self.over = True
        return True

    def drain(self) -> None:
        """Read what is left, now that nobody can write any more."""
        for pipe in tuple(self.open):
            while not self.over and self.read(pipe):
                pass
