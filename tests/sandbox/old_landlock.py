"""Supervise one run as on a kernel with an older Landlock: ROOT VERSION PROGRAM.

A script: it runs as another user, with a Python that has none of the test's packages.
"""

from __future__ import annotations

import json
import os
import socket
import sys

sys.path.insert(0, sys.argv[1])

from psynth_jax.sandbox import client, landlock, messages, supervisor
from psynth_jax.sandbox.limits import Limits


def main() -> None:
    version = int(sys.argv[2])
    landlock.version = lambda: version
    job = client.job_for("landlock", sys.argv[3].encode(), {}, Limits())
    ours, theirs = socket.socketpair()
    messages.send(ours, job.to_json())
    supervisor.serve(theirs, f"psynth-sandbox-old-{os.getpid()}")
    answer = messages.receive(ours)
    assert answer is not None
    for name in ("stdout", "stderr"):
        answer[name] = messages.to_bytes(answer[name]).decode()
    print(json.dumps(answer))


main()
