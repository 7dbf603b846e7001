"""A process of one thread that forks a supervisor for each run.

Python takes 20 ms to start, a fork 1 ms; and to fork the client itself, which may have the threads
of JAX, is not safe.  The client sends one end of a socket pair for each run:

    client ── control ──> server ── fork ──> supervisor of run 1
      └────────────────── run 1 ─────────────────┘
"""

from __future__ import annotations

import os
import select
import socket
import sys

from psynth_jax.sandbox import supervisor

_LOOK = 0.5  # seconds between two looks whether the client lives


def main() -> None:
    """Serve the client, which is the parent, until it is gone."""
    control = socket.socket(fileno=int(sys.argv[2]))
    control.set_inheritable(False)
    parent = int(sys.argv[3])
    poll = select.poll()
    poll.register(control, select.POLLIN)
    # Its end closes the connection, but a fork of it may hold a copy: therefore its id, too.
    while os.getppid() == parent:
        _reap()
        if not poll.poll(_LOOK * 1000):
            continue
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        _supervise(descriptors[0], control)


def _supervise(descriptor: int, control: socket.socket) -> None:
    if os.fork() != 0:
        os.close(descriptor)
        return
    code = 1
    try:
        os.set_inheritable(descriptor, False)
        control.close()
        with socket.socket(fileno=descriptor) as connection:
            supervisor.serve(connection)
        code = 0
    except OSError:  # the client has closed its end
        pass
    finally:
        os._exit(code)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass
