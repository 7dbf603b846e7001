"""A process of one thread that forks a supervisor for each run.

Python takes 20 ms to start, a fork 1 ms; and to fork the client itself, which may have the threads
of JAX, is not safe.  The client sends one end of a socket pair for each run:

    client ── control ──> server ── fork ──> supervisor of run 1
      └────────────────── run 1 ─────────────────┘
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import sys
import time

from psynth_jax.sandbox import kernel, namespace, processes, supervisor

_LOOK = 0.5  # seconds between two looks at what has ended

_PAUSE = 0.005  # seconds between two attempts to reap what was killed
_PATIENCE = 5.0  # seconds; what the kernel holds longer is reaped at a later look

_folders: dict[int, str] = {}  # of each supervisor, the name of the folder of its run


def main() -> None:
    """Serve the client, which is the parent, until it is gone."""
    control = socket.socket(fileno=int(sys.argv[2]))
    control.set_inheritable(False)
    parent = int(sys.argv[3])
    kernel.adopt_orphans()
    if os.geteuid() != 0:
        namespace.available()  # it is remembered, here and in all supervisors
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
    # Drawn here, so that this process knows it when the supervisor is dead; nobody can guess it.
    folder = f"psynth-sandbox-{secrets.token_hex(16)}"
    child = os.fork()
    if child != 0:
        _folders[child] = folder
        os.close(descriptor)
        return
    code = 1
    try:
        os.set_inheritable(descriptor, False)
        control.close()
        with socket.socket(fileno=descriptor) as connection:
            supervisor.serve(connection, folder)
        code = 0
    except OSError:  # the client has closed its end
        pass
    finally:
        os._exit(code)


def _reap() -> None:
    """Reap supervisors.  What one leaves that was itself killed has become ours: kill it."""
    try:
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                return
            folder = _folders.pop(ended, None)
            if folder is not None and status != 0:
                _kill_orphans()
                supervisor.remove_left(folder)
    except ChildProcessError:
        pass


def _kill_orphans() -> None:
    """Kill the groups of our children that are no supervisors.

    A program's group dies at once, forks and all; bubblewrap's processes die with their parent.
    """
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        orphans = set(processes.children(os.getpid())) - set(_folders)
        if not orphans:
            return
        for orphan in orphans:
            with contextlib.suppress(OSError):  # it is dead already
                _kill(orphan)
            os.waitpid(orphan, os.WNOHANG)
        time.sleep(_PAUSE)


def _kill(orphan: int) -> None:
    group = os.getpgid(orphan)
    if group == os.getpgrp():
        # Its supervisor died before it could lead a group of its own: the group is ours.
        os.kill(orphan, signal.SIGKILL)
    else:
        os.killpg(group, signal.SIGKILL)
