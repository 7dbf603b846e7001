"""The launchers of clouds and clusters: each command of a dry run, word by word, and what a run runs.

No cloud is asked: programs that write their arguments into a log stand in for gcloud, xpk and sbatch.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from psynth_jax.topology import tpu_slice
from tests.launcher import CONFIG, OVERRIDES, RECORD, TOOLS, Launcher, one_line
from tests.test_launch import ROOT, installs

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in TOOLS), reason="git, or a tool of Linux that the scripts need, is missing"
)

SCRIPTS = ["tpu_vm.sh", "compute_engine.sh", "gke_xpk.sh", "slurm.sh"]
SLICE = ["--name", "s", "--zone=us-west4-a", "--project", "p-1"]
WHERE = "--zone=us-west4-a --project=p-1"
REGION = "--region=us-west4 --project=p-1"
CREATE = [*SLICE, "--create", "--accelerator"]
V6E = [*CREATE, "v6e-16"]
POD = ["--cluster", "c", "--workload", "w", "--tpu-type", "v5p-64"]
STOP = "if [ -e psynth_jax/launch/tpu_worker.sh ]; then bash psynth_jax/launch/tpu_worker.sh stop; fi"
UNPACK = "mkdir -p psynth_jax && cd psynth_jax && rm -rf psynth_jax && tar -xzf ../psynth_jax.tar.gz"
INSTALL = f"{UNPACK} && bash launch/tpu_worker.sh install"
START = f"cd psynth_jax && bash launch/tpu_worker.sh start {CONFIG}"


@pytest.fixture
def here(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def lines(text: str) -> list[list[str]]:
    """Return the words of commands, one a line."""
    return [shlex.split(line) for line in text.strip().splitlines()]


def packed(here: Launcher) -> list[list[str]]:
    """Return the commands that make an archive of the commit."""
    return lines(f"""
        mkdir -p {here.root}/.launch
        git -C {here.root} archive --format=tar.gz --output={here.root}/.launch/s.tar.gz HEAD
    """)


class TestArguments:
    @pytest.mark.parametrize(
        ("script", "arguments", "message"),
        [
            ("tpu_vm.sh", [CONFIG], "the following arguments are required: --name, --zone, --project"),
            ("tpu_vm.sh", ["--name"], "argument --name: expected one argument"),
            ("tpu_vm.sh", [*SLICE, "--fast", CONFIG], "unrecognized arguments: --fast"),
            ("tpu_vm.sh", ["--zone", "us-west4", CONFIG], "--zone: must be like us-west4-a, got 'us-west4'"),
            ("tpu_vm.sh", ["--name", "x;reboot", CONFIG], "--name: must be like my-slice, got 'x;reboot'"),
            ("tpu_vm.sh", [*SLICE, "--name", "t", CONFIG], "--name is given twice"),
            ("tpu_vm.sh", SLICE, "CONFIG is missing"),
            ("tpu_vm.sh", [*SLICE, "configs/absent.yaml"], "configs/absent.yaml is not a file of HEAD"),
            ("tpu_vm.sh", [*SLICE, "configs"], "configs is not a file of HEAD"),
            ("tpu_vm.sh", [*SLICE, "--nfs", "a:/b;c", CONFIG], "--nfs: must be like 10.0.0.2:/share, got 'a:/b;c'"),
            ("tpu_vm.sh", [*SLICE, "--ref", "v9", CONFIG], "--ref must be a commit that git knows, got 'v9'"),
            ("tpu_vm.sh", [*SLICE, CONFIG, "--create"], "'--create' is not key=value"),
            ("tpu_vm.sh", [*SLICE, "--create", CONFIG], "--accelerator is missing"),
            ("tpu_vm.sh", [*CREATE, "v7z-8", CONFIG], "no software is known for v7z-8"),
            ("tpu_vm.sh", [*CREATE, "tpu7x-16", CONFIG], "use launch/compute_engine.sh"),
            ("tpu_vm.sh", [*SLICE, "--logs", "--delete"], "--logs and --delete exclude each other"),
            ("tpu_vm.sh", [*SLICE, "--delete", CONFIG], "--delete takes no CONFIG"),
            ("tpu_vm.sh", [*SLICE, "--stop-run", "--create"], "--stop-run takes no --create"),
            ("tpu_vm.sh", [*SLICE, "--stop-run", "--worker", "1"], "--stop-run takes no --worker"),
            ("compute_engine.sh", [*SLICE, "--logs", "--spot"], "--logs takes no --spot"),
            ("compute_engine.sh", [*CREATE, "v5e-16", CONFIG], "no v5e-16 slice: use launch/tpu_vm.sh"),
            ("compute_engine.sh", [*V6E, "--flex-start", CONFIG], "--flex-start and --max-run-duration go together"),
            ("compute_engine.sh", [*V6E, "--max-run-duration=1h", CONFIG], "--max-run-duration go together"),
            ("compute_engine.sh", [*V6E, "--spot", "--reservation=r", CONFIG], "--spot and --reservation exclude each"),
            ("compute_engine.sh", [*V6E, "--flex-start", "--max-run-duration=7d1s", CONFIG], "is 7d at most"),
            ("compute_engine.sh", [*V6E, "--topology=2x4", CONFIG], "must be 2 numbers whose product is 16"),
            ("compute_engine.sh", [*V6E, "--topology=2x2x4", CONFIG], "must be 2 numbers whose product is 16"),
            ("compute_engine.sh", [*CREATE, "v6e-12", CONFIG], "v6e-12 must be 2 numbers whose product is 12"),
            ("compute_engine.sh", [*CREATE, "v6e-6", CONFIG], "v6e-6 has 6 chips: a slice has 4 on each host"),
            ("compute_engine.sh", [*CREATE, "v6e-4", CONFIG], "v6e-4 is a single VM"),
            ("compute_engine.sh", [*CREATE, "v6e-1", CONFIG], "v6e-1 is a single VM"),
            ("gke_xpk.sh", ["--cluster", "c", CONFIG], "required: --workload, --tpu-type"),
            ("gke_xpk.sh", POD, "CONFIG is missing"),
            ("gke_xpk.sh", [*POD, "--docker-image", "a b", CONFIG], "argument --docker-image: must be like"),
            ("gke_xpk.sh", [*POD, "--docker-image", "a", "--ref", "HEAD", CONFIG], "give no --base-docker-image"),
            ("slurm.sh", ["--nodes", "2"], "CONFIG is missing"),
            ("slurm.sh", ["--nodes", "two", CONFIG], "--nodes: must be like 2, got 'two'"),
            ("slurm.sh", ["--time", "tomorrow", CONFIG], "--time: must be like 12:00:00, got 'tomorrow'"),
            (
                "slurm.sh",
                ["--time", "00:05:30", CONFIG],
                "--time must be over a minute longer than --save-before, 5 minutes",
            ),
            ("slurm.sh", ["--time", "6", CONFIG], "--time must be over a minute longer than --save-before"),
            ("slurm.sh", ["--mount", "/a", CONFIG], "--mount is for a container"),
            ("slurm.sh", ["--container", "i", "--mount", "/a,b:/c", CONFIG], "--mount: must be like /mnt/shared"),
            ("slurm.sh", ["absent.yaml"], "there is no config absent.yaml"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_line(self, here: Launcher, script: str, arguments: list[str], message: str) -> None:
        here.fake("gcloud", "xpk", "sbatch")
        assert message in one_line(here.run(script, *arguments, cwd=here.root))
        assert here.calls() == []

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_help(self, here: Launcher, script: str) -> None:
        done = here.run(script, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: launch/{script} [options] CONFIG [key=value ...]")
        assert "--dry-run" in done.stdout

    def test_a_program_that_is_missing(self, here: Launcher) -> None:
        assert one_line(here.run("tpu_vm.sh", *SLICE, "--logs")).startswith("gcloud is missing: install it")

    @pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_xpk.sh"])
    def test_tells_of_changes_that_stay_here(self, here: Launcher, script: str) -> None:
        (here.root / "pyproject.toml").write_text("")
        arguments = POD if script == "gke_xpk.sh" else SLICE
        assert "not committed" in here.run(script, *arguments, "--dry-run", CONFIG).stderr


class TestTpuVm:
    def ssh(self, command: str, options: str = "", worker: str = "all") -> list[str]:
        call = f"gcloud compute tpus tpu-vm ssh s {WHERE} --worker={worker}"
        return [*call.split(), f"--command={command}", *options.split()]

    def expected(self, here: Launcher, options: str = "") -> list[list[str]]:
        archive = f"{here.root}/.launch/s.tar.gz"
        copy = f"gcloud compute tpus tpu-vm scp {archive} s:psynth_jax.tar.gz {WHERE} --worker=all {options}"
        sent = [self.ssh(STOP, options), copy.split(), self.ssh(INSTALL, options), self.ssh(START, options)]
        return [*packed(here), *sent]

    def test_dry_run(self, here: Launcher) -> None:
        here.fake("gcloud")
        assert here.dry("tpu_vm.sh", *SLICE, CONFIG) == self.expected(here)
        one_option = ["--ssh-option=--internal-ip"]
        two_words = ["--ssh-option", "--internal-ip"]
        for given in (one_option, two_words):
            assert here.dry("tpu_vm.sh", *SLICE, *given, CONFIG) == self.expected(here, "--internal-ip")

    def test_a_shared_folder(self, here: Launcher) -> None:
        command = here.dry("tpu_vm.sh", *SLICE, "--nfs", "10.0.0.2:/share", CONFIG)[-2][-1]
        assert command == f"--command={INSTALL} && bash launch/tpu_worker.sh mount 10.0.0.2:/share"

    def test_runs_what_a_dry_run_prints(self, here: Launcher) -> None:
        here.fake("gcloud")
        done = here.run("tpu_vm.sh", *SLICE, CONFIG)
        assert (done.returncode, done.stderr) == (0, "")
        assert here.words() == [words for words in self.expected(here) if words[0] == "gcloud"]
        with tarfile.open(here.root / ".launch" / "s.tar.gz") as archive:
            assert {CONFIG, "launch/tpu_worker.sh", "pyproject.toml"} <= set(archive.getnames())

    def test_a_worker_that_fails_ends_it(self, here: Launcher) -> None:
        here.fake("gcloud", then='sys.exit(3 * ("scp" in sys.argv))')
        assert here.run("tpu_vm.sh", *SLICE, CONFIG).returncode == 3
        assert [words[4] for words in here.words()] == ["ssh", "scp"]

    @pytest.mark.parametrize(
        ("accelerator", "sent", "runtime"),
        [
            ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
            ("v5litepod-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
            ("v5p-64", "v5p-64", "v2-alpha-tpuv5"),
            ("v6e-16", "v6e-16", "v2-alpha-tpuv6e"),
            ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
        ],
    )
    def test_create(self, here: Launcher, accelerator: str, sent: str, runtime: str) -> None:
        more = ["--create", "--spot", "--create-option", "--network=n", "--accelerator", accelerator]
        queued = "gcloud compute tpus queued-resources"
        create, ask, *rest = here.dry("tpu_vm.sh", *SLICE, *more, CONFIG)
        named = f"--node-id=s --accelerator-type={sent} --runtime-version={runtime}"
        assert create == f"{queued} create s {WHERE} {named} --spot --network=n".split()
        assert ask == f"{queued} describe s {WHERE} --format=value(state.state)".split()
        assert rest == self.expected(here)
        (other, *_) = here.dry("tpu_vm.sh", *SLICE, *more, "--runtime", "my-version", CONFIG)
        assert "--runtime-version=my-version" in other

    @pytest.mark.parametrize("last", ["ACTIVE", "FAILED", "SUSPENDED"])
    def test_create_waits(self, here: Launcher, tmp_path: Path, last: str) -> None:
        states = tmp_path / "states"
        states.write_text(f"WAITING_FOR_RESOURCES PROVISIONING PROVISIONING {last}")
        tell = f"states = Path({str(states)!r})\nfirst, _, rest = states.read_text().partition(' ')\n"
        here.fake("gcloud", then=f"{tell}if 'describe' in sys.argv:\n    states.write_text(rest)\n    print(first)\n")
        script = here.root / "launch" / "cloud.py"
        script.write_text(script.read_text().replace("POLL_SECONDS = 30", "POLL_SECONDS = 0"))
        done = here.run("tpu_vm.sh", *SLICE, "--create", "--accelerator=v5e-16", CONFIG)
        told = ["s: WAITING_FOR_RESOURCES", "s: PROVISIONING", f"s: {last}"]
        called = [words[4] for words in here.words()]
        begun = ["create", *["describe"] * 4]
        seen = [line for line in done.stderr.splitlines() if line.startswith("s: ")]
        assert seen == told
        if last == "ACTIVE":
            assert (done.returncode, called) == (0, [*begun, "ssh", "scp", "ssh", "ssh"])
        else:
            assert (done.returncode, called) == (2, begun)
            assert done.stderr.endswith("s is not to be had: delete the request with --delete\n")

    def test_other_actions(self, here: Launcher) -> None:
        follow = self.ssh("bash psynth_jax/launch/tpu_worker.sh logs 3")
        assert here.dry("tpu_vm.sh", *SLICE, "--logs", "--worker=3") == [follow]
        assert here.dry("tpu_vm.sh", *SLICE, "--stop-run") == [self.ssh(STOP)]
        delete = f"gcloud compute tpus queued-resources delete s {WHERE} --force"
        assert here.dry("tpu_vm.sh", *SLICE, "--delete") == [delete.split()]


class TestComputeEngine:
    GROUP = "gcloud compute instance-groups managed"
    LIST = f"{GROUP} list-instances s {WHERE} --format=value(instance.basename(),instanceStatus)"

    def ssh(self, command: str, options: str = "", vm: str = "VM") -> list[str]:
        return [*f"gcloud compute ssh {vm} {WHERE}".split(), f"--command={command}", *options.split()]

    def sent(self, here: Launcher, vm: str = "VM") -> list[list[str]]:
        copy = f"gcloud compute scp {here.root}/.launch/s.tar.gz {vm}:psynth_jax.tar.gz {WHERE}".split()
        return [self.ssh(STOP, vm=vm), copy, self.ssh(INSTALL, vm=vm), self.ssh(START, vm=vm)]

    def created(self, machine: str, topology: str, capacity: str, hosts: int) -> list[list[str]]:
        """Return the commands that create a slice."""
        ubuntu = "2404-amd64-tpu-tpu7x" if machine.startswith("tpu7x") else "2204-amd64-tpu-v5e-v5p-v6e"
        image = f"--image-project=ubuntu-os-accelerator-images --image-family=ubuntu-accel-{ubuntu}"
        of_region = "projects/p-1/regions/us-west4"
        commands = [
            f"gcloud compute resource-policies create workload-policy s {REGION} --type=HIGH_THROUGHPUT"
            f" --accelerator-topology={topology} --accelerator-topology-mode=AUTO_CONNECT",
            "gcloud compute instance-templates create s --instance-template-region=us-west4 --project=p-1"
            f" --machine-type={machine} --maintenance-policy=TERMINATE {image} --boot-disk-size=200GB"
            f" --scopes=cloud-platform {capacity}",
            f"{self.GROUP} create s {WHERE} --size=0 --target-size-policy-mode=bulk"
            f" --default-action-on-vm-failure=do-nothing --template={of_region}/instanceTemplates/s"
            f" --workload-policy={of_region}/resourcePolicies/s",
            f"{self.GROUP} resize s {WHERE} --size={hosts}",
            f"{self.GROUP} wait-until s {WHERE} --stable",
        ]
        return [command.split() for command in commands]

    def test_dry_run(self, here: Launcher) -> None:
        here.fake("gcloud")
        expected = [*packed(here), self.LIST.split(), *self.sent(here)]
        assert here.dry("compute_engine.sh", *SLICE, CONFIG) == expected

    @pytest.mark.parametrize(
        ("options", "capacity"),
        [
            ("", "--provisioning-model=STANDARD"),
            ("--spot", "--provisioning-model=SPOT --instance-termination-action=STOP"),
            (
                "--flex-start --max-run-duration 12h",
                "--provisioning-model=FLEX_START --reservation-affinity=none --max-run-duration=12h"
                " --instance-termination-action=DELETE",
            ),
            (
                "--reservation r",
                "--provisioning-model=RESERVATION_BOUND --reservation-affinity=specific --reservation=r"
                " --instance-termination-action=DELETE",
            ),
        ],
    )
    def test_create_with_each_kind_of_capacity(self, here: Launcher, options: str, capacity: str) -> None:
        more = [*options.split(), "--create-option", "--no-address"]
        commands = here.dry("compute_engine.sh", *V6E, *more, CONFIG)
        assert commands[:5] == self.created("ct6e-standard-4t", "4x4", f"{capacity} --no-address", 4)
        assert commands[5:] == [*packed(here), self.LIST.split(), *self.sent(here)]

    @pytest.mark.parametrize(
        ("accelerator", "machine", "topology", "hosts"),
        [
            ("v6e-8", "ct6e-standard-4t", "2x4", 2),
            ("v5p-64", "ct5p-hightpu-4t", "2x4x4", 8),
            ("tpu7x-16", "tpu7x-standard-4t", "2x2x2", 2),
        ],
    )
    def test_create_each_kind(self, here: Launcher, accelerator: str, machine: str, topology: str, hosts: int) -> None:
        given = [*SLICE, "--create", "--accelerator", accelerator]
        commands = here.dry("compute_engine.sh", *given, CONFIG)
        assert commands[:5] == self.created(machine, topology, "--provisioning-model=STANDARD", hosts)

    def test_another_topology(self, here: Launcher) -> None:
        commands = here.dry("compute_engine.sh", *V6E, "--topology=2x8", CONFIG)
        assert commands[:5] == self.created("ct6e-standard-4t", "2x8", "--provisioning-model=STANDARD", 4)

    def fake_group(self, here: Launcher, **states: str) -> None:
        """Have gcloud list VMs."""
        listed = "".join(f"{name.replace('_', '-')}\\t{state}\\n" for name, state in states.items())
        here.fake("gcloud", then=f'if "list-instances" in sys.argv:\n    print("{listed}", end="")\n')

    def test_every_vm_is_asked(self, here: Launcher) -> None:
        self.fake_group(here, s_b="RUNNING", s_a="RUNNING")
        done = here.run("compute_engine.sh", *SLICE, CONFIG)
        assert (done.returncode, done.stderr) == (0, "")
        listed, *called = here.words()
        assert listed == self.LIST.split()
        # VMs are asked at the same time, but each command only after the one before it.
        pairs = [sorted(called[i : i + 2]) for i in range(0, len(called), 2)]
        both = zip(self.sent(here, "s-a"), self.sent(here, "s-b"), strict=True)
        assert pairs == [list(pair) for pair in both]

    @pytest.mark.parametrize("states", [{}, {"s_a": "RUNNING", "s_b": "STAGING"}, {"s_a": "RUNNING", "s_b": ""}])
    def test_a_vm_that_does_not_run_ends_it(self, here: Launcher, states: dict[str, str]) -> None:
        self.fake_group(here, **states)
        count = "1 of 2" if states else "0 of 0"
        message = one_line(here.run("compute_engine.sh", *SLICE, CONFIG))
        assert message.startswith(f"{count} VMs of s run: wait until all do")
        assert here.words() == [self.LIST.split()]

    def test_a_vm_that_fails_ends_it(self, here: Launcher) -> None:
        listed = 'if "list-instances" in sys.argv:\n    print("s-a\\tRUNNING\\ns-b\\tRUNNING")\n'
        here.fake("gcloud", then=f'{listed}sys.exit(3 * ("scp" in sys.argv and "s-a:" in sys.argv[4]))\n')
        assert here.run("compute_engine.sh", *SLICE, CONFIG).returncode == 3
        assert [words[2] for words in here.words()] == ["instance-groups", "ssh", "ssh", "scp", "scp"]

    def test_other_actions(self, here: Launcher) -> None:
        follow = self.ssh("bash psynth_jax/launch/tpu_worker.sh logs 0", "--internal-ip")
        logs = here.dry("compute_engine.sh", *SLICE, "--logs", "--ssh-option", "--internal-ip")
        assert logs == [self.LIST.split(), follow]
        assert here.dry("compute_engine.sh", *SLICE, "--stop-run") == [self.LIST.split(), self.ssh(STOP)]

    DELETE = f"""
        {GROUP} delete s {WHERE} --quiet
        gcloud compute instance-templates delete s {REGION} --quiet
        gcloud compute resource-policies delete s {REGION} --quiet
    """

    def test_delete(self, here: Launcher) -> None:
        assert here.dry("compute_engine.sh", *SLICE, "--delete") == lines(self.DELETE)

    def test_delete_goes_on_when_a_part_is_missing(self, here: Launcher) -> None:
        here.fake("gcloud", then='sys.exit("instance-groups" in sys.argv)')
        assert here.run("compute_engine.sh", *SLICE, "--delete").returncode == 1
        assert here.words() == lines(self.DELETE)


def documented() -> list[str]:
    """Return the blocks of docs/launch.md that call a launcher, as a shell would read them."""
    text = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks if re.search(r"launch/\w+\.sh .*--", block)]


@pytest.mark.parametrize("block", documented())
def test_command_lines_of_the_documentation(here: Launcher, block: str) -> None:
    """Each is a command line that a launcher takes; xpk's own commands are left out."""
    shutil.copy(here.root / CONFIG, here.root / "configs" / "my-run.yaml")
    here.git("add", ".")
    here.git("commit", "--quiet", "--message=config")
    calls = re.sub(r"(launch/\w+\.sh)", r"bash \1 --dry-run", block.replace("ADDRESS:/SHARE", "10.0.0.2:/s"))
    calls = re.sub(r"^xpk (.*\\\n)*.*\n", "", calls, flags=re.MULTILINE)
    names = "slice=(--name my-slice --zone us-east5-a --project my-project)"
    done = here.shell(["-euc", f"{names}\n{calls}"], here.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") >= calls.count("--dry-run")


def test_there_is_something_documented() -> None:
    text = "".join(documented())
    assert all(f"launch/{script} " in text for script in SCRIPTS)


@pytest.fixture(scope="module")
def cloud() -> ModuleType:
    """Load launch/cloud.py, which is no package."""
    sys.path.insert(0, str(ROOT / "launch"))
    try:
        spec = importlib.util.spec_from_file_location("cloud", ROOT / "launch" / "cloud.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.mark.parametrize("kind", ["v5e", "v5p", "v6e", "tpu7x"])
def test_layouts_are_those_that_programs_are_compiled_for(cloud: ModuleType, kind: str) -> None:
    row = cloud.KINDS[kind]
    for exponent in range(2, 9):
        chips = 2**exponent
        compiled = tpu_slice(f"{kind}-{chips * row.cores}")
        assert cloud.usual_topology(chips, row.axes) == "x".join(map(str, compiled.shape))
        assert row.cores == compiled.chip.counted


@pytest.mark.parametrize("words", [OVERRIDES, ["a=two\nlines", "b=tab\tand 'quote' \\ \n"], ["c=naïve ✓\r"]])
def test_bash_reads_quoted_words_back(cloud: ModuleType, words: list[str]) -> None:
    line = cloud.quoted(words)
    assert "\n" not in line and "\r" not in line
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("0", 0), ("90", 90), ("1:30", 1.5), ("2:00:30", 120.5), ("1-12", 2160), ("1-0:30", 1470), ("1-0:30:30", 1470.5)],
)
def test_times_are_those_of_slurm(cloud: ModuleType, limit: str, minutes: float) -> None:
    assert cloud.minutes_of(limit) == minutes


class TestGke:
    def expected(self, tpu_type: str, image: str, more: str = "", where: str = "") -> list[str]:
        create = (
            f"xpk workload create --cluster=c --workload=w --tpu-type={tpu_type} {where}"
            f" --max-restarts=50 --termination-grace-period-seconds=300 {image} {more}"
        )
        return [*create.split(), f"--command=exec bash launch/gke_worker.sh {CONFIG}"]

    @pytest.mark.parametrize(
        ("tpu_type", "sent"),
        [("v5e-16", "v5litepod-16"), ("v5p-64", "v5p-64"), ("v6e-16", "v6e-16"), ("tpu7x-16", "tpu7x-16")],
    )
    def test_dry_run(self, here: Launcher, tpu_type: str, sent: str) -> None:
        stage = f"{here.root}/.launch/w"
        assert here.dry("gke_xpk.sh", *POD[:-1], tpu_type, CONFIG) == [
            ["rm", "-rf", stage],
            ["mkdir", "-p", stage],
            ["git", "-C", str(here.root), "archive", "--format=tar.gz", f"--output={stage}.tar.gz", "HEAD"],
            ["tar", "-xzf", f"{stage}.tar.gz", "-C", stage],
            self.expected(sent, f"--base-docker-image=python:3.12 --script-dir={stage}"),
        ]

    def test_an_image_that_is_complete(self, here: Launcher) -> None:
        (create,) = here.dry("gke_xpk.sh", *POD, "--docker-image", "a.dev/b/c:1", CONFIG)
        assert create == self.expected("v5p-64", "--docker-image=a.dev/b/c:1")

    def test_options(self, here: Launcher) -> None:
        where = "--project=p-1 --zone=us-west4-a"
        passed_on = ["--xpk-option", "--priority=high", "--xpk-option=--spot"]
        given = [*POD, *where.split(), *passed_on, "--docker-image=a:1", CONFIG]
        (create,) = here.dry("gke_xpk.sh", *given)
        assert create == self.expected("v5p-64", "--docker-image=a:1", "--priority=high --spot", where)
        (create,) = here.dry("gke_xpk.sh", *POD, "--max-restarts=3", "--docker-image=a:1", CONFIG)
        assert "--max-restarts=3" in create


class TestSlurm:
    def expected(self, here: Launcher) -> list[list[str]]:
        submit = (
            "sbatch --job-name=psynth --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --time=1-12:00:00"
            " --signal=B:USR1@300 --output=%x-%j.log --open-mode=append --requeue"
            f" {here.root}/launch/slurm_job.sh {here.venv}/bin/psynth train"
        )
        return [["bash", f"{here.root}/launch/setup.sh", "cuda"], [*submit.split(), CONFIG, *OVERRIDES]]

    def test_dry_run(self, here: Launcher) -> None:
        given = ["--nodes=2", "--time=1-12:00:00", CONFIG, *OVERRIDES]
        assert here.dry("slurm.sh", *given) == self.expected(here)

    def test_runs_what_a_dry_run_prints(self, here: Launcher) -> None:
        here.fake("sbatch")
        here.make_environment()
        done = here.run("slurm.sh", "--nodes", "2", "--time", "1-12:00:00", CONFIG, *OVERRIDES, cwd=here.root)
        assert done.returncode == 0, done.stderr
        *installed, _ = here.calls()
        assert installed == installs("cuda")
        here.run("slurm.sh", "--nodes", "2", "--time", "1-12:00:00", CONFIG, *OVERRIDES, cwd=here.root)
        assert here.words() == self.expected(here)[1:]

    def test_container(self, here: Launcher) -> None:
        more = ["--gpus-per-node", "4", "--sbatch-option", "--qos=high", "--name=My_job.2", "--save-before=60"]
        root = here.root
        submit = (
            "sbatch --job-name=My_job.2 --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --signal=B:USR1@60"
            f" --output=%x-%j.log --open-mode=append --requeue --qos=high {root}/launch/slurm_job.sh"
            f" --container-image=a/b:1 --container-mounts={root}:{root},/mnt/shared:/mnt/shared"
            f" --container-workdir={root} psynth train {CONFIG}"
        )
        assert here.dry("slurm.sh", *more, "--container", "a/b:1", "--mount=/mnt/shared", CONFIG) == lines(submit)


def test_skypilot_example_joins_the_hosts_of_a_slice(here: Launcher) -> None:
    task = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text(encoding="utf-8"))
    subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], text=True, check=True)
    names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "PSYNTH_EXTRA"]
    here.fake_psynth(RECORD.replace("*sys.argv[1:]", f"*map(os.environ.get, {names}), *sys.argv[1:]"))
    (here.path / "head").symlink_to(shutil.which("head") or "head")
    hosts = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    task["envs"]["CONFIG"] = CONFIG
    done = here.shell(["-euc", task["run"]], here.root, **task["envs"], **hosts)
    assert done.returncode == 0, done.stderr
    overrides = ["workdir=gs://my-bucket/runs/a", "mesh=fsdp=16", "batch.examples=16"]
    assert here.words() == [["psynth", "10.0.0.1:8482", "2", "1", "tpu", "train", CONFIG, *overrides]]
