"""The Python that programs run with, and the paths that it needs: the one that runs us.

<prefix>/bin/python          the interpreter, of a virtual environment often a link
<prefix>/lib                 site-packages
<base prefix>/lib            the standard library, libpython
/lib, /lib64, /usr/lib ...   shared libraries
/etc/ld.so.cache, zones      what the C library reads
"""

from __future__ import annotations

import dataclasses
import os
import site
import stat
import sys
import sysconfig
from pathlib import Path

# The C library's.  No folder of /etc, no /proc, no /sys.
SYSTEM_PATHS = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclasses.dataclass(frozen=True)
class Runtime:
    """An interpreter, and what it may read: files, and folders with all that is in them."""

    python: str
    paths: tuple[str, ...]

    def hidden_from_others(self) -> str | None:
        """Return a path that a user who owns nothing cannot read, or None if there is none."""
        for path in (self.python, *self.paths):
            if not open_to_all(Path(path)):
                return path
        return None


def this_python() -> Runtime:
    """Describe the Python that runs this process."""
    given = Path(sys.executable)
    python = given.parent.resolve() / given.name
    wanted = {str(python), str(python.resolve())}
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        folder = Path(prefix)
        wanted |= {str(folder / "lib"), str(folder / "lib64"), str(folder / "pyvenv.cfg")}
    # The environment as the interpreter finds it from its own path, with links resolved.
    home = python.parent.parent
    wanted |= {str(home / "lib"), str(home / "lib64"), str(home / "pyvenv.cfg")}
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        wanted.add(sysconfig.get_path(name))
    wanted.update(site.getsitepackages())
    present = [path for path in sorted(wanted) if Path(path).exists()]
    return Runtime(str(python), _outermost(present))


def _outermost(paths: list[str]) -> tuple[str, ...]:
    """Return the paths that lie below no other one, nor below one of the system's."""
    kept: list[str] = []
    for path in paths:
        above = {str(folder) for folder in Path(path).parents} | {path}
        if above.isdisjoint(SYSTEM_PATHS) and (above - {path}).isdisjoint(paths):
            kept.append(path)
    return tuple(kept)


def command(runtime: Runtime, program: str) -> list[str]:
    """Return the command that runs a file: isolated, without byte code, UTF-8 everywhere."""
    return [runtime.python, "-I", "-B", "-X", "utf8", program]


def environment(folder: str) -> dict[str, str]:
    """Return the whole environment of a program: nothing of ours is in it."""
    variables = {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    # Each thread counts as a process, and libraries of linear algebra start one for every core.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        variables[name] = "1"
    return variables


def open_to_all(path: Path) -> bool:
    """Whether any user may read a path: it is open to all, and so is the way to it."""
    for place in (path, path.resolve()):
        for folder in place.parents:
            if not folder.stat().st_mode & stat.S_IXOTH:
                return False
    mode = path.stat().st_mode
    needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
    return mode & needed == needed and os.access(path, os.R_OK)
