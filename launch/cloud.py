"""Start training on a cloud or a cluster: launch/tpu_vm.sh and its siblings run this.

    python3 launch/cloud.py tpu_vm|compute_engine|gke_xpk|slurm [options] CONFIG [key=value ...]

launch/clouds.py says what differs between clouds.  This checks a command line, fills in the
commands, and runs them.  It needs Python 3.10 and no package.  Messages go to stderr, a line each;
wrong arguments end it with exit code 2.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import clouds
from clouds import HOST_CHIPS, KINDS

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 30
LONGEST = 7 * 86400  # seconds that flex-start gives at most
AT_ONCE = 16  # processes: a gcloud takes tens of MB, and a slice may have hundreds of VMs
Values = dict[str, Any]  # of options, and what commands need besides

# ---------------------------------------------------------------------------------------- arguments


def fail(message: str) -> NoReturn:
    """End with a line on stderr and exit code 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


class Once(argparse.Action):
    """Stores a value, and refuses a second one."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        """Store it."""
        if getattr(namespace, self.dest) != self.default:
            parser.error(f"{option} is given twice")
        setattr(namespace, self.dest, value)


class Parser(argparse.ArgumentParser):
    """Options of a launcher, then CONFIG and overrides."""

    def __init__(self, script: str) -> None:
        about, options = clouds.LAUNCHERS[script]
        prog = f"launch/{script}.sh"
        usage = f"{prog} [options] CONFIG [key=value ...]"
        super().__init__(prog, usage, about, allow_abbrev=False)
        for option in ["dry-run", *options.split()]:
            name, _, default = option.rstrip("!.").partition("=")
            text = clouds.HELP.get(f"{script} {name}") or clouds.HELP[name]
            form = clouds.FORMS.get(f"{script} {name}") or clouds.FORMS.get(name)
            if form is None:
                self.add_argument(f"--{name}", action="store_true", help=text)
                continue
            more: Values = {"type": typed(*form), "metavar": form[0], "help": text}
            if option.endswith("..."):
                more.update(action="append", default=[])
            else:
                more.update(action=Once, required=option.endswith("!"), default=default or None)
            self.add_argument(f"--{name}", **more)
        config = "CONFIG [key=value ...]"
        self.add_argument("run", nargs=argparse.REMAINDER, metavar=config, help="of psynth train")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the usage."""
        fail(f"{message}; see {self.prog} --help")

    def read(self, words: list[str]) -> Values:
        """Return the values of all options, or end with what is wrong in the words."""
        joined: list[str] = []
        for word in words:
            # argparse takes no value that begins with a dash, as in --ssh-option --internal-ip.
            if joined and re.fullmatch(r"--[a-z]+-option", joined[-1]):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        values = vars(self.parse_args(joined))
        for group in clouds.EXCLUDE:
            given = [name for name in group if values.get(name)]
            if len(given) > 1:
                self.error(f"{' and '.join(map(as_option, given))} exclude each other")
        return values

    def check_alone(self, action: str, values: Values) -> None:
        """Fail if an action has options that only a start reads, or a config."""
        used = {action, "dry_run", "name", "zone", "project", "ssh_option"}
        if action == "logs":
            used.add("worker")
        if values["run"]:
            self.error(f"{as_option(action)} takes no CONFIG")
        for name in sorted(set(values) - {*used, "run"}):
            if values[name] != self.get_default(name):
                self.error(f"{as_option(action)} takes no {as_option(name)}")

    def check_run(self, run: list[str]) -> None:
        """Fail unless there is a config, followed by overrides alone."""
        if not run:
            self.error("CONFIG is missing")
        for word in run[1:]:
            if not re.match(r"[A-Za-z_][\w.]*=", word):
                self.error(f"{word!r} is not key=value: options come before CONFIG")


def typed(example: str, form: str) -> Any:
    """Return what checks a value for argparse."""

    def checked(given: str) -> str:
        if not re.fullmatch(form, given, re.ASCII):
            raise argparse.ArgumentTypeError(f"must be like {example}, got {given!r}")
        return given

    return checked


def as_option(name: str) -> str:
    """Return an option as it is given."""
    return "--" + name.replace("_", "-")


def check_committed(ref: str, config: str) -> None:
    """Fail unless a config is a file of a commit: that is what other machines are sent."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
        return done.stdout.strip()

    if not git("rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}"):
        fail(f"--ref must be a commit that git knows, got {ref!r}")
    if git("cat-file", "-t", f"{ref}:./{config}") != "blob":
        fail(f"{config} is not a file of {ref}: commit it, and name it from the checkout's top")
    if ref == "HEAD" and git("status", "--porcelain", "--untracked-files=no"):
        print("note: changes that are not committed stay here", file=sys.stderr)


def quoted(words: list[str]) -> str:
    """Quote words for bash on one line: what xpk writes into YAML must be one."""
    result = []
    for word in words:
        if re.search(r"[\x00-\x1f]", word):
            hexes = re.sub(r"[\\'\x00-\x1f]", lambda found: f"\\x{ord(found[0]):02x}", word)
            result.append(f"$'{hexes}'")
        else:
            result.append(shlex.quote(word))
    return " ".join(result)


# ----------------------------------------------------------------------------------------- commands


def fill(template: str, values: Values) -> list[str]:
    """Return the words of a command of launch/clouds.py."""
    region = (values.get("zone") or "").rpartition("-")[0]
    values = {"root": ROOT, "region": region, **values}
    words: list[str] = []
    for word in template.split():
        names = re.findall(r"{(\w+)}", word)
        if word in ("*where", "*in_region"):
            words += fill(clouds.PLACES[word[1:]], values)
        elif word.startswith("*"):
            words += values[word[1:]]
        elif all(values[name] is not None for name in names):
            words.append(word.format_map(values))
    return words


def execute(commands: list[list[str]], dry: bool, stdin: int | None = None) -> int:
    """Run commands at the same time, or print them; return the highest exit code."""
    if dry:
        for words in commands:
            print(shlex.join(words))
        return 0

    def exit_code(words: list[str]) -> int:
        code = subprocess.run(words, stdin=stdin).returncode
        return code if code >= 0 else 128 - code  # by a signal, as a shell has it

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return max(pool.map(exit_code, commands))


def run(templates: str, values: Values, keep_going: bool = False) -> None:
    """Run commands one after another.  End with the exit code of one that fails, then or later."""
    highest = 0
    for template in templates.strip().split("\n\n"):
        code = execute([fill(template, values)], values["dry_run"])
        if code and not keep_going:
            sys.exit(code)
        highest = max(highest, code)
    if highest:
        sys.exit(highest)


def ask(template: str, values: Values) -> str:
    """Return what a command prints; in a dry run, print the command."""
    words = fill(template, values)
    if values["dry_run"]:
        execute([words], dry=True)
        return ""
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


# --------------------------------------------------------------------------------------- TPU slices


class Slice:
    """A slice of the Cloud TPU API or of Compute Engine."""

    def __init__(self, script: str, values: Values) -> None:
        self.commands = clouds.SLICES[script]
        self.values = values
        self.machines: list[str] = []

    def create(self) -> None:
        """Create it and wait until it is there."""
        accelerator = self.values["accelerator"]
        if accelerator is None:
            fail("--accelerator is missing: --create needs it, such as --accelerator v6e-16")
        self.values["googles"] = googles_name(accelerator)
        if "vms" in self.commands:
            self._describe_group(accelerator)
        else:
            self._describe_queued_resource(accelerator)
        run(self.commands["create"], self.values)
        if "state" in self.commands:
            self._wait()

    def _describe_queued_resource(self, accelerator: str) -> None:
        name = kind_of(accelerator)
        kind = KINDS.get(name)
        if kind and kind.runtime is None:
            fail(f"the Cloud TPU API has no {name}: use launch/compute_engine.sh or gke_xpk.sh")
        if kind and self.values["runtime"] is None:
            self.values["runtime"] = kind.runtime
        if self.values["runtime"] is None:
            fail(f"no software is known for {accelerator}: name it with --runtime")
        self.values["spot_option"] = ["--spot"] * self.values["spot"]

    def _describe_group(self, accelerator: str) -> None:
        values = self.values
        kind = KINDS.get(kind_of(accelerator))
        if kind is None or kind.machine_type is None:
            fail(f"Compute Engine has no {accelerator} slice: use launch/tpu_vm.sh or gke_xpk.sh")
        if values["flex_start"] != bool(values["max_run_duration"]):
            fail("--flex-start and --max-run-duration go together, such as --max-run-duration 12h")
        chips = int(accelerator.partition("-")[2]) // kind.cores
        if chips <= HOST_CHIPS:
            fail(f"{accelerator} is a single VM: create it alone, and run launch/train.sh there")
        if chips % HOST_CHIPS:
            fail(f"{accelerator} has {chips} chips: a slice has {HOST_CHIPS} on each host")
        topology = values["topology"] or usual_topology(chips, kind.axes)
        shape = [int(size) for size in topology.split("x")]
        if math.prod(shape) != chips or len(shape) != kind.axes:
            fail(f"--topology for {accelerator} must be {kind.axes} numbers whose product is {chips}")
        if (values["max_run_duration"] or "") and seconds_of(values["max_run_duration"]) > LONGEST:
            fail("--max-run-duration is 7d at most")
        asked = next((option for option in clouds.CAPACITY if option and values[option]), "")
        values.update(kind._asdict(), topology=topology, hosts=chips // HOST_CHIPS)
        values["capacity"] = fill(clouds.CAPACITY[asked], values)

    def _wait(self) -> None:
        name, before = self.values["name"], ""
        while True:
            state = ask(self.commands["state"], self.values)
            if state != before:
                print(f"{name}: {state}", file=sys.stderr)
            if self.values["dry_run"] or state == "ACTIVE":
                return
            if state.startswith(("FAILED", "SUSPEND")):
                fail(f"{name} is not to be had: delete the request with --delete")
            before = state
            time.sleep(POLL_SECONDS)

    def delete(self) -> None:
        """Delete all that it was made from, also when a part is missing."""
        run(self.commands["delete"], self.values, keep_going=True)

    def everywhere(self, what: str, **more: str) -> None:
        """Run a command for all machines at the same time."""
        if not self.machines:
            self.machines = self._find_machines()
        commands = []
        for vm in self.machines:
            commands.append(fill(self.commands[what], {**self.values, **more, "vm": vm}))
        code = execute(commands, self.values["dry_run"], stdin=subprocess.DEVNULL)
        if code:
            sys.exit(code)

    def _find_machines(self) -> list[str]:
        """Return names of VMs, all of which must run.  A dry run of a group has one, called VM."""
        if "vms" not in self.commands:
            return ["all"]  # what gcloud compute tpus calls them
        listed = ask(self.commands["vms"], self.values)
        if self.values["dry_run"]:
            return ["VM"]
        states = {}
        for line in listed.splitlines():  # a VM that is being made has a name and no state
            name, _, states[name] = line.partition("\t")
        running = sorted(name for name in states if states[name] == "RUNNING")
        if not running or len(running) < len(states):
            count = f"{len(running)} of {len(states)} VMs of {self.values['name']} run"
            fail(f"{count}: wait until all do, or --delete the slice and --create it again")
        return running


def seconds_of(duration: str) -> int:
    """Return the seconds of a time as gcloud takes it, such as 1d12h."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([smhd])", duration))


def kind_of(accelerator: str) -> str:
    """Return v5e for v5e-16, and for v5litepod-16, as Google says."""
    return accelerator.partition("-")[0].replace("v5litepod", "v5e")


def googles_name(accelerator: str) -> str:
    """Return v5litepod-16 for v5e-16, which psynth compile says, and all others as they are."""
    return accelerator.replace("v5e-", "v5litepod-")


def usual_topology(chips: int, axes: int) -> str:
    """Return how Google lays out a power of two of chips, such as 2x4x4."""
    shape = [2, 2, 1][:axes]
    while math.prod(shape) < chips:
        shape[shape.index(min(shape))] *= 2
    if chips > HOST_CHIPS:
        shape.sort()
    return "x".join(map(str, shape))


def train_on_slice(script: str, words: list[str]) -> None:
    """Train on a slice, or look after one."""
    parser = Parser(script)
    values = parser.read(words)
    action = next((name for name in clouds.EXCLUDE[0] if values[name]), None)
    if action is None:
        parser.check_run(values["run"])
        check_committed(values["ref"], values["run"][0])
    else:
        parser.check_alone(action, values)

    tpus = Slice(script, values)
    if action == "delete":
        tpus.delete()
    elif action == "stop_run":
        tpus.everywhere("ssh", command=clouds.STOP)
    elif action == "logs":  # metadata tells which VM is which worker, its name does not
        command = f"bash psynth_jax/launch/tpu_worker.sh logs {values['worker']}"
        tpus.everywhere("ssh", command=command)
    else:
        if values["create"]:
            tpus.create()
        start_training(tpus)


def start_training(tpus: Slice) -> None:
    """Send a commit to all machines, install it there, and start training."""
    values = tpus.values
    archive = f"{ROOT}/.launch/{values['name']}.tar.gz"
    install = f"{clouds.UNPACK} && bash launch/tpu_worker.sh install"
    if values["nfs"]:
        install += f" && bash launch/tpu_worker.sh mount {values['nfs']}"
    start = f"cd psynth_jax && bash launch/tpu_worker.sh start {quoted(values['run'])}"
    run(clouds.PACK, {**values, "archive": archive})
    tpus.everywhere("ssh", command=clouds.STOP)
    tpus.everywhere("scp", archive=archive)
    tpus.everywhere("ssh", command=install)
    tpus.everywhere("ssh", command=start)


# ----------------------------------------------------------------------------------------- clusters


def train_on_gke(words: list[str]) -> None:
    """Have xpk create a workload."""
    parser = Parser("gke_xpk")
    values = parser.read(words)
    parser.check_run(values["run"])
    values.update(googles=googles_name(values["tpu_type"]), stage=None)
    if values["docker_image"] is None:
        values["ref"] = values["ref"] or "HEAD"
        values["base_docker_image"] = values["base_docker_image"] or "python:3.12"
        values["stage"] = f"{ROOT}/.launch/{values['workload']}"
        check_committed(values["ref"], values["run"][0])
        run(clouds.STAGE, values)
    elif values["base_docker_image"] or values["ref"]:
        parser.error("--docker-image is used as it is: give no --base-docker-image and no --ref")
    # exec: xpk hands SIGTERM to the one process that its command starts as.
    values["command"] = f"exec bash launch/gke_worker.sh {quoted(values['run'])}"
    run(clouds.XPK, values)


def minutes_of(limit: str) -> float:
    """Return the minutes of a time as SLURM reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.  0 is no limit."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) < 3:
        hours, minutes, seconds = [0, *parts, 0][:3]
    else:
        hours, minutes, seconds = parts
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def train_on_slurm(words: list[str]) -> None:
    """Submit a job."""
    parser = Parser("slurm")
    values = parser.read(words)
    parser.check_run(values["run"])
    if not Path(values["run"][0]).is_file():
        fail(f"there is no config {values['run'][0]}")
    minutes, notice = minutes_of(values["time"] or "0"), int(values["save_before"]) / 60
    if 0 < minutes <= notice + 1:
        # SLURM would tell the job to save as soon as it runs, and it would come back without end.
        parser.error(f"--time must be over a minute longer than --save-before, {notice:g} minutes")
    values.update(mounts=None, workdir=None)
    if values["container"]:
        here = str(Path.cwd())
        values["mounts"] = ",".join(f"{folder}:{folder}" for folder in [here, *values["mount"]])
        values.update(workdir=here, psynth="psynth")
    elif values["mount"]:
        parser.error("--mount is for a container: name it with --container")
    else:
        venv = ROOT / (os.environ.get("PSYNTH_VENV") or ".venv")
        values["psynth"] = f"{venv}/bin/psynth"
        run("bash {root}/launch/setup.sh cuda", values)
    run(clouds.SBATCH, values)


def main() -> None:
    """Run the launcher that the first argument names."""
    script, *words = sys.argv[1:]
    try:
        if script == "gke_xpk":
            train_on_gke(words)
        elif script == "slurm":
            train_on_slurm(words)
        else:
            train_on_slice(script, words)
    except FileNotFoundError as error:
        fail(f"{error.filename} is missing: install it, and have it on PATH")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
