"""A checkout with its launch scripts, and fakes of everything that lies outside of it, for tests/test_launch_training.py.

A fake writes its name and arguments into a log, as a line of JSON.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.test_launch import Checkout, executable, real_python

TOOLS = ["git", "tar", "gzip", "sleep", "hostname", "setsid", "nohup", "flock"]
CONFIG = "configs/run.yaml"
OVERRIDES = [
    "mesh=data=4,fsdp=4",
    'model=it\'s a "model"',
    "data=[{kind: synthetic, count: 3}]",
    "workdir=gs://b/$HOME `x` *  \\",
]
RECORD = f"""#!{sys.executable} -IS
import json, os, sys
from pathlib import Path
name = Path(sys.argv[0]).name
with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps([name, *sys.argv[1:]]) + chr(10))
"""

# Says that it is there, and ends when it is told to.
WAIT = f"""{RECORD}
import signal
pid = Path(os.environ["HOME"], "psynth.pid")
def end(*_):
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps([name, "told"]) + chr(10))
    pid.unlink()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pid.write_text(str(os.getpid()))
with open(os.environ["READY"], "w") as ready:
    ready.write("x")
while True:
    signal.pause()
"""


class Launcher(Checkout):
    """A committed checkout with an environment, and fakes of everything that lies outside of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for tool in TOOLS:
            if not (self.path / tool).exists():
                (self.path / tool).symlink_to(shutil.which(tool) or tool)
        real_python(self.path / "python3")
        config = self.root / CONFIG
        config.parent.mkdir()
        config.write_text("workdir: runs/x\n")
        (self.root / ".gitignore").write_text(".venv/\n.launch/\n/train.*\n")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message=all")
        self.ready = folder / "ready"
        os.mkfifo(self.ready)
        self.env["READY"] = str(self.ready)

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=self.root, env=self.env, check=True)

    def fake(self, *names: str, then: str = "") -> None:
        for name in names:
            executable(self.path / name, RECORD + then)

    def fake_psynth(self, text: str = RECORD) -> Path:
        """Make an environment that is complete but for what setup.sh notes down, with a psynth of ours."""
        self.make_environment()
        return executable(self.venv / "bin" / "psynth", text)

    def words(self) -> list[list[str]]:
        """Return the recorded calls since the last time; what setup.sh installs is not among them."""
        return [json.loads(line) for line in self.calls() if line.startswith("[")]

    def dry(self, script: str, *arguments: str) -> list[list[str]]:
        """Return the commands of a dry run, and check that it has run and written nothing."""
        before = sorted(self.root.rglob("*"))
        done = self.run(script, "--dry-run", *arguments, cwd=self.root)
        assert (done.returncode, done.stderr) == (0, "")
        assert self.calls() == []
        assert sorted(self.root.rglob("*")) == before
        return [shlex.split(line) for line in done.stdout.splitlines()]

    def run(self, script: str, *arguments: str, cwd: str | Path = "/", **env: str) -> subprocess.CompletedProcess[str]:
        return self.shell([str(self.root / "launch" / script), *arguments], cwd, **env)

    def shell(self, arguments: list[str], cwd: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.path / "bash"), *arguments]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(command, cwd=cwd, env=self.env | env, **options)

    def begin(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a script in the checkout and return once its psynth waits to be told to end."""
        ready = os.open(self.ready, os.O_RDWR)
        try:
            command = [str(self.path / "bash"), str(self.root / "launch" / script), *arguments]
            process = subprocess.Popen(command, cwd=self.root, env=self.env | env, stdout=subprocess.DEVNULL)
            assert select.select([ready], [], [], 60)[0], "psynth has not started"
            os.read(ready, 1)
        finally:
            os.close(ready)
        return process


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the message of a script that was called wrongly."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
