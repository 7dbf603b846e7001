"""The scripts that start training: what a dry run prints, what a run runs, and that words and signals arrive as they are.

No cloud is asked: programs that write their arguments, as JSON, into a log stand in for gcloud, xpk, sbatch, psynth and
others.  What these scripts would have another machine run is run here, by a shell, in a copy of the checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher import CONFIG, RECORD, TOOLS, WAIT, Launcher, one_line
from tests.test_launch import executable, installs

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in TOOLS), reason="git, or a tool of Linux that the scripts need, is missing"
)

OVERRIDES = [
    "mesh=data=4,fsdp=4",
    'model=it\'s a "model"',
    "data=[{kind: synthetic, count: 3}]",
    "workdir=gs://b/$HOME `x` *  \\",
]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Launcher]:
    yield Launcher(tmp_path)
    waiting = tmp_path / "psynth.pid"  # if a test has failed before it told psynth to end
    if waiting.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(waiting.read_text()), signal.SIGKILL)


SLICE = ["--name", "s", "--zone=us-west4-a", "--project", "p-1"]
WHERE = ["--zone=us-west4-a", "--project=p-1"]
POD = ["--cluster", "c", "--workload", "w", "--tpu-type", "v5p-64"]


class TestArguments:
    @pytest.mark.parametrize(
        ("script", "arguments", "message"),
        [
            ("train.sh", [], "CONFIG is missing"),
            ("train.sh", ["absent.yaml"], "no config absent.yaml"),
            ("train.sh", ["--fast", CONFIG], "unknown option --fast"),
            ("adapter.sh", [], "FOLDER is missing"),
            ("adapter.sh", ["configs"], "there is no configs/hotpotqa_train.json"),
            ("tpu_vm.sh", [CONFIG], "--name is missing"),
            ("tpu_vm.sh", ["--name"], "--name needs a value"),
            ("tpu_vm.sh", ["--name", "s", "--zone", "us-west4", "--project", "p-1", CONFIG], "--zone cannot be 'us-west4'"),
            ("tpu_vm.sh", ["--name", "x;reboot", "--zone", "us-west4-a", "--project", "p-1", CONFIG], "--name cannot be"),
            ("tpu_vm.sh", SLICE, "CONFIG is missing"),
            ("tpu_vm.sh", [*SLICE, "configs/absent.yaml"], "configs/absent.yaml is no file of HEAD"),
            ("tpu_vm.sh", [*SLICE, "configs"], "configs is no file of HEAD"),
            ("tpu_vm.sh", [*SLICE, "--nfs", "a:/b;c", CONFIG], "--nfs cannot be 'a:/b;c'"),
            ("tpu_vm.sh", [*SLICE, "--ref", "v9", CONFIG], "--ref cannot be 'v9'"),
            ("tpu_vm.sh", [*SLICE, CONFIG, "--create"], "'--create' is no override"),
            ("tpu_vm.sh", [*SLICE, "--create", CONFIG], "--accelerator is missing"),
            ("tpu_vm.sh", [*SLICE, "--create", "--accelerator", "v7z-8", CONFIG], "no software is known for v7z-8"),
            ("tpu_vm.sh", [*SLICE, "--logs", "--delete"], "--logs and --delete exclude each other"),
            ("tpu_vm.sh", [*SLICE, "--delete", CONFIG], "--delete goes with no --create and no CONFIG"),
            ("gke_xpk.sh", ["--cluster", "c", CONFIG], "--workload is missing"),
            ("gke_xpk.sh", POD, "CONFIG is missing"),
            ("gke_xpk.sh", [*POD, "--docker-image", "a b", CONFIG], "--docker-image cannot be 'a b'"),
            (
                "gke_xpk.sh",
                [*POD, "--docker-image", "a", "--ref", "HEAD", CONFIG],
                "give no --base-docker-image and no --ref",
            ),
            ("slurm.sh", ["--nodes", "2"], "CONFIG is missing"),
            ("slurm.sh", ["--nodes", "two", CONFIG], "--nodes cannot be 'two'"),
            ("slurm.sh", ["--time", "tomorrow", CONFIG], "--time cannot be 'tomorrow'"),
            ("slurm.sh", ["--mount", "/a", CONFIG], "--mount is for a container"),
            ("tpu_worker.sh", [], "usage"),
            ("tpu_worker.sh", ["rm", "-rf"], "usage"),
            ("tpu_worker.sh", ["start"], "CONFIG is missing"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_line(self, here: Launcher, script: str, arguments: list[str], message: str) -> None:
        here.fake("gcloud", "xpk", "sbatch", "curl")
        assert message in one_line(here.run(script, *arguments, cwd=here.root))
        assert here.calls() == []

    @pytest.mark.parametrize("script", ["train.sh", "adapter.sh", "tpu_vm.sh", "gke_xpk.sh", "slurm.sh"])
    def test_help_names_every_option(self, here: Launcher, script: str) -> None:
        done = here.run(script, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        text = (here.root / "launch" / script).read_text()
        parsed = text.partition('case "$1" in')[2].partition("esac")[0]
        options = set(re.findall(r"(--[a-z-]+)(?= \||\))", parsed)) - {"--help"}
        assert options
        assert not [option for option in options if option not in done.stdout]


class TestTrain:
    def test_dry_run(self, here: Launcher) -> None:
        assert here.dry("train.sh", CONFIG, *OVERRIDES) == [
            ["bash", f"{here.root}/launch/setup.sh", "demo"],
            ["exec", f"{here.venv}/bin/psynth", "train", CONFIG, *OVERRIDES],
        ]

    @pytest.mark.parametrize(
        ("device", "driver", "wanted", "extra"),
        [
            ("", "exit 0", "", "cuda"),
            ("", "exit 9", "", "demo"),
            ("accel0", "exit 0", "", "tpu"),
            ("vfio/0", "", "", "tpu"),
            ("vfio/vfio", "", "", "demo"),
            ("", "", "tpu", "tpu"),
            ("accel0", "", "none", "demo"),
        ],
    )
    def test_installs_what_the_host_has(
        self, here: Launcher, tmp_path: Path, device: str, driver: str, wanted: str, extra: str
    ) -> None:
        script = here.root / "launch" / "train.sh"
        script.write_text(script.read_text().replace('"/dev/', f'"{tmp_path}/dev/'))
        if device:
            executable(tmp_path / "dev" / device, "")
        if driver:
            executable(here.path / "nvidia-smi", f"#!/bin/bash\n{driver}\n")
        here.fake_psynth()
        done = here.run("train.sh", CONFIG, cwd=here.root, **({"PSYNTH_EXTRA": wanted} if wanted else {}))
        assert done.returncode == 0, done.stderr
        assert here.calls() == [*installs(extra), json.dumps(["psynth", "train", CONFIG])]

    def test_unknown_extra(self, here: Launcher) -> None:
        assert "PSYNTH_EXTRA cannot be 'rocm'" in one_line(here.run("train.sh", CONFIG, cwd=here.root, PSYNTH_EXTRA="rocm"))

    def test_words_and_exit_code_are_passed_on(self, here: Launcher) -> None:
        here.fake_psynth(RECORD + "sys.exit(3)")
        assert here.run("train.sh", CONFIG, *OVERRIDES, cwd=here.root).returncode == 3
        assert here.words() == [["psynth", "train", CONFIG, *OVERRIDES]]

    def test_sigterm_reaches_psynth(self, here: Launcher) -> None:
        here.fake_psynth(WAIT)
        process = here.begin("train.sh", CONFIG)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert here.words()[-1] == ["psynth", "told"]


class TestTpuVm:
    def expected(self, here: Launcher, *options: str) -> list[list[str]]:
        ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", *options, "s", *WHERE, "--worker=all"]
        archive = f"{here.root}/.launch/s.tar.gz"
        stop = "if [ -e psynth_jax/launch/tpu_worker.sh ]; then bash psynth_jax/launch/tpu_worker.sh stop; fi"
        unpack = "mkdir -p psynth_jax && cd psynth_jax && rm -rf psynth_jax && tar -xzf ../psynth_jax.tar.gz"
        start = shlex.split(f"cd psynth_jax && bash launch/tpu_worker.sh start {CONFIG}")
        copy = [
            "gcloud",
            "compute",
            "tpus",
            "tpu-vm",
            "scp",
            *options,
            archive,
            "s:psynth_jax.tar.gz",
            *WHERE,
            "--worker=all",
        ]
        return [
            ["mkdir", "-p", f"{here.root}/.launch"],
            ["git", "-C", str(here.root), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
            [*ssh, f"--command={stop}"],
            copy,
            [*ssh, f"--command={unpack} && bash launch/tpu_worker.sh install"],
            [*ssh, f"--command={' '.join(start)}"],
        ]

    def test_dry_run(self, here: Launcher) -> None:
        here.fake("gcloud")
        assert here.dry("tpu_vm.sh", *SLICE, CONFIG) == self.expected(here)
        assert here.dry("tpu_vm.sh", *SLICE, "--ssh-option=--internal-ip", CONFIG) == self.expected(here, "--internal-ip")

    def test_a_shared_folder(self, here: Launcher) -> None:
        command = here.dry("tpu_vm.sh", *SLICE, "--nfs", "10.0.0.2:/share", CONFIG)[-2][-1]
        assert command.endswith("tpu_worker.sh install && bash launch/tpu_worker.sh mount 10.0.0.2:/share")

    def test_runs_what_a_dry_run_prints(self, here: Launcher) -> None:
        here.fake("gcloud")
        done = here.run("tpu_vm.sh", *SLICE, CONFIG)
        assert (done.returncode, done.stderr) == (0, "")
        assert here.words() == [words for words in self.expected(here) if words[0] == "gcloud"]
        with tarfile.open(here.root / ".launch" / "s.tar.gz") as archive:
            assert {CONFIG, "launch/tpu_worker.sh", "pyproject.toml"} <= set(archive.getnames())

    def test_a_worker_that_fails_ends_it(self, here: Launcher) -> None:
        here.fake("gcloud", then='sys.exit("scp" in sys.argv)')
        assert here.run("tpu_vm.sh", *SLICE, CONFIG).returncode == 1
        assert [words[4] for words in here.words()] == ["ssh", "scp"]

    def test_tells_of_changes_that_stay_here(self, here: Launcher) -> None:
        here.fake("gcloud")
        (here.root / "pyproject.toml").write_text("")
        assert "not committed" in here.run("tpu_vm.sh", *SLICE, "--dry-run", CONFIG).stderr

    @pytest.mark.parametrize(
        ("accelerator", "sent", "runtime"),
        [
            ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
            ("v5p-64", "v5p-64", "v2-alpha-tpuv5"),
            ("v6e-16", "v6e-16", "v2-alpha-tpuv6e"),
            ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
        ],
    )
    def test_create(self, here: Launcher, accelerator: str, sent: str, runtime: str) -> None:
        more = ["--create", "--spot", "--create-option", "--network=n", "--accelerator", accelerator]
        queued = ["gcloud", "compute", "tpus", "queued-resources"]
        named = ["--node-id=s", f"--accelerator-type={sent}", f"--runtime-version={runtime}"]
        create, ask, *rest = here.dry("tpu_vm.sh", *SLICE, *more, CONFIG)
        assert create == [*queued, "create", "--spot", "--network=n", "s", *WHERE, *named]
        assert ask == [*queued, "describe", "s", *WHERE, "--format=value(state.state)"]
        assert rest == self.expected(here)
        (other, *_) = here.dry("tpu_vm.sh", *SLICE, *more, "--runtime", "my-version", CONFIG)
        assert other[-1] == "--runtime-version=my-version"

    @pytest.mark.parametrize("last", ["ACTIVE", "FAILED", "SUSPENDED"])
    def test_create_waits(self, here: Launcher, tmp_path: Path, last: str) -> None:
        states = tmp_path / "states"
        states.write_text(f"WAITING_FOR_RESOURCES PROVISIONING PROVISIONING {last}")
        tell = f"states = Path({str(states)!r})\nfirst, _, rest = states.read_text().partition(' ')\n"
        here.fake("gcloud", then=f"{tell}if 'describe' in sys.argv:\n    states.write_text(rest)\n    print(first)\n")
        here.path.joinpath("sleep").unlink()
        here.fake("sleep")
        done = here.run("tpu_vm.sh", *SLICE, "--create", "--accelerator=v5e-16", CONFIG)
        told = ["s: WAITING_FOR_RESOURCES", "s: PROVISIONING", f"s: {last}"]
        called = [words[4] if words[0] == "gcloud" else "sleep" for words in here.words()]
        begun = ["create", *["describe", "sleep"] * 3, "describe"]
        if last == "ACTIVE":
            assert (done.returncode, done.stderr.splitlines()) == (0, told)
            assert called == [*begun, "ssh", "scp", "ssh", "ssh"]
        else:
            assert (done.returncode, done.stderr.splitlines()[:3]) == (2, told)
            assert called == begun

    def test_other_actions(self, here: Launcher) -> None:
        tpus = ["gcloud", "compute", "tpus"]
        (follow,) = here.dry("tpu_vm.sh", *SLICE, "--logs", "--worker=3")
        assert follow == [*tpus, "tpu-vm", "ssh", "s", *WHERE, "--worker=3", "--command=tail -n 100 -F psynth_jax/train.log"]
        assert here.dry("tpu_vm.sh", *SLICE, "--stop-run") == [self.expected(here)[2]]
        assert here.dry("tpu_vm.sh", *SLICE, "--delete") == [[*tpus, "queued-resources", "delete", "s", *WHERE, "--force"]]


class TestTpuWorker:
    """What tpu_vm.sh has a worker run, run in a home folder that has what it sends."""

    @pytest.fixture
    def worker(self, here: Launcher) -> Launcher:
        here.root = here.root.rename(here.root.with_name("psynth_jax"))
        here.venv = here.root / ".venv"
        self.metadata(here, "10.0.0.1,10.0.0.2,10.0.0.3")
        return here

    @staticmethod
    def metadata(worker: Launcher, endpoints: str) -> None:
        answers = {"worker-network-endpoints": endpoints, "agent-worker-number": "2"}
        then = f"print({answers!r}[sys.argv[-1].rpartition('/')[2]])\nassert 'Metadata-Flavor: Google' in sys.argv"
        worker.fake("curl", then=then)

    @staticmethod
    def remote(worker: Launcher, number: int, *arguments: str) -> str:
        """Return what tpu_vm.sh sends as its command of this number."""
        lines = worker.dry("tpu_vm.sh", *SLICE, *arguments)
        return lines[number][-1].removeprefix("--command=")

    @staticmethod
    def ended(worker: Launcher) -> None:
        subprocess.run(["flock", "--timeout", "60", worker.root / "train.lock", "true"], check=True)

    def test_words_arrive_as_they_are(self, worker: Launcher) -> None:
        worker.fake_psynth()
        command = self.remote(worker, -1, CONFIG, *OVERRIDES)
        done = worker.shell(["-c", command], worker.root.parent)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        self.ended(worker)
        assert worker.words()[-1] == ["psynth", "train", CONFIG, *OVERRIDES]

    @pytest.mark.parametrize(
        ("endpoints", "joined"),
        [
            ("10.0.0.1,10.0.0.2,10.0.0.3", ["10.0.0.1:8482", "3", "2"]),
            ("a:0:10.0.0.1,b:1:10.0.0.2", ["10.0.0.1:8482", "2", "2"]),
            ("10.0.0.1", [None, None, None]),
        ],
    )
    def test_joins_the_other_workers(self, worker: Launcher, endpoints: str, joined: list[str | None]) -> None:
        self.metadata(worker, endpoints)
        names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "PSYNTH_EXTRA"]
        worker.fake_psynth(RECORD.replace("*sys.argv[1:]", f"*map(os.environ.get, {names})"))
        assert worker.run("tpu_worker.sh", "start", CONFIG).returncode == 0
        self.ended(worker)
        assert worker.words()[-1] == ["psynth", *joined, "tpu"]

    def test_no_metadata_no_run(self, worker: Launcher) -> None:
        worker.fake_psynth()
        worker.fake("curl", then="sys.exit(6)")
        assert worker.run("tpu_worker.sh", "start", CONFIG).returncode == 6
        assert [words[0] for words in worker.words()] == ["curl"]

    def test_one_run_at_a_time_that_stops_when_it_is_told(self, worker: Launcher) -> None:
        stop = self.remote(worker, -4, CONFIG)
        worker.fake_psynth(WAIT)
        assert worker.begin("tpu_worker.sh", "start", CONFIG).wait(60) == 0  # training goes on without it
        training = int((worker.root / "train.pid").read_text())
        assert os.getsid(training) == training
        os.kill(training, signal.SIGHUP)  # as when the connection breaks
        assert "a run is active" in one_line(worker.run("tpu_worker.sh", "start", CONFIG))
        worker.words()
        assert worker.shell(["-c", stop], worker.root.parent).returncode == 0
        assert worker.words() == [["psynth", "told"]]
        worker.fake_psynth()
        assert worker.run("tpu_worker.sh", "start", CONFIG).returncode == 0
        self.ended(worker)
        assert worker.words()[-1] == ["psynth", "train", CONFIG]

    def test_nothing_to_stop(self, worker: Launcher, tmp_path: Path) -> None:
        stop = self.remote(worker, -4, CONFIG)
        (tmp_path / "new").mkdir()
        for home in (tmp_path / "new", worker.root.parent):
            done = worker.shell(["-c", stop], home)
            assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("mounted", [True, False])
    def test_mounts_once(self, worker: Launcher, mounted: bool) -> None:
        worker.fake("sudo")
        worker.fake("mountpoint", then=f"sys.exit({int(not mounted)})")
        assert worker.run("tpu_worker.sh", "mount", "10.0.0.2:/share").returncode == 0
        asked, *done = worker.words()
        assert asked == ["mountpoint", "--quiet", "/mnt/shared"]
        mount = [["sudo", "mkdir", "-p", "/mnt/shared"], ["sudo", "mount", "-t", "nfs", "10.0.0.2:/share", "/mnt/shared"]]
        assert done[-2:] == ([] if mounted else mount)

    def test_install_replaces_the_package_and_keeps_runs(self, worker: Launcher) -> None:
        worker.make_environment()
        command = self.remote(worker, -2, CONFIG)
        worker.git("archive", "--format=tar.gz", f"--output={worker.root.parent}/psynth_jax.tar.gz", "HEAD")
        old, kept = worker.root / "psynth_jax" / "old.py", worker.root / "runs" / "x" / "checkpoint"
        for file in (old, kept):
            executable(file, "")
        executable(worker.path / "python3", f'#!/bin/bash\n[[ "$*" != *base_executable* ]] || echo 3.13 {sys.executable}\n')
        done = worker.shell(["-c", command], worker.root.parent)
        assert done.returncode == 0, done.stderr
        assert worker.calls() == installs("tpu")
        assert kept.exists() and not old.exists()

    def test_install_brings_a_python(self, worker: Launcher) -> None:
        script = '[[ "$*" != *"python find"* ]] || echo "$HOME/new python"\n[[ "$*" != *base_executable* ]] || exit 1\n'
        executable(worker.path / "python3", f'#!/bin/bash\n[[ "$1" != -m ]] || echo "$*" >>"$LOG"\n{script}')
        known = 'case "$*" in *base_executable*) echo 3.12 "$0" ;; *version_info*) echo 3.12 ;; esac\n'
        executable(worker.root.parent / "new python", f'#!/bin/bash\n[[ "$1" != -m ]] || echo "$*" >>"$LOG"\n{known}')
        worker.run("tpu_worker.sh", "install")  # there is no real Python that it could go on with
        calls = worker.calls()
        assert calls[:3] == ["-m pip install --user --quiet uv", "-m uv python install 3.12", "-m uv python find 3.12"]
        assert f"-m venv {worker.venv}" in calls


class TestGke:
    def expected(self, here: Launcher, *image: str) -> list[str]:
        create = ["xpk", "workload", "create", "--termination-grace-period-seconds=300", "--cluster=c", "--workload=w"]
        command = f"--command=exec bash launch/gke_worker.sh {CONFIG}"
        return [*create, "--tpu-type=v5p-64", "--max-restarts=50", *image, command]

    def test_dry_run(self, here: Launcher) -> None:
        stage = f"{here.root}/.launch/w"
        assert here.dry("gke_xpk.sh", *POD, CONFIG) == [
            ["rm", "-rf", stage],
            ["mkdir", "-p", stage],
            ["git", "-C", str(here.root), "archive", "--format=tar.gz", f"--output={stage}.tar.gz", "HEAD"],
            ["tar", "-xzf", f"{stage}.tar.gz", "-C", stage],
            self.expected(here, "--base-docker-image=python:3.12", f"--script-dir={stage}"),
        ]

    def test_an_image_that_is_complete(self, here: Launcher) -> None:
        (create,) = here.dry("gke_xpk.sh", *POD, "--docker-image", "a.dev/b/c:1", CONFIG)
        assert create == self.expected(here, "--docker-image=a.dev/b/c:1")

    def test_options(self, here: Launcher) -> None:
        more = ["--project=p-1", "--zone=us-west4-a", "--max-restarts=3", "--xpk-option", "--priority=high"]
        words = here.dry("gke_xpk.sh", *POD, "--tpu-type=v5e-16", *more, CONFIG)[-1]
        assert {"--tpu-type=v5litepod-16", *more[:3], "--priority=high"} < set(words)

    def test_words_arrive_in_the_pod_as_they_are(self, here: Launcher) -> None:
        """xpk puts the command between parentheses into a script of a YAML block, so that it must be one line."""
        here.fake("xpk")
        assert here.run("gke_xpk.sh", *POD, CONFIG, *OVERRIDES, "note=two\nlines").returncode == 0
        ((*_, script_dir, command),) = here.words()
        assert "\n" not in command
        here.fake_psynth()
        stage = script_dir.removeprefix("--script-dir=")
        done = here.shell(["-c", f"({command.removeprefix('--command=')})"], stage, PSYNTH_VENV=str(here.venv))
        assert done.returncode == 0, done.stderr
        assert here.calls() == [*installs("tpu"), json.dumps(["psynth", "train", CONFIG, *OVERRIDES, "note=two\nlines"])]

    def test_exit_code_is_passed_on(self, here: Launcher) -> None:
        here.fake_psynth(RECORD + "sys.exit(3)")
        assert here.run("gke_worker.sh", CONFIG, cwd=here.root).returncode == 3

    def test_a_pod_that_is_told_to_end_is_not_done(self, here: Launcher) -> None:
        here.fake_psynth(WAIT)
        process = here.begin("gke_worker.sh", CONFIG)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert here.words()[-1] == ["psynth", "told"]


class TestSlurm:
    SUBMIT = ("sbatch", "--output=%x-%j.log", "--open-mode=append", "--requeue")
    RUN = """
import os
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
os.execvp(words[0], words)
"""

    def expected(self, here: Launcher) -> list[list[str]]:
        job = ["--job-name=psynth", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--signal=B:USR1@300"]
        train = [f"{here.root}/launch/slurm_job.sh", f"{here.venv}/bin/psynth", "train", CONFIG, *OVERRIDES]
        return [["bash", f"{here.root}/launch/setup.sh", "cuda"], [*self.SUBMIT, *job, "--time=1-12:00:00", *train]]

    def test_dry_run(self, here: Launcher) -> None:
        given = ["--nodes=2", "--time=1-12:00:00", CONFIG, *OVERRIDES]
        assert here.dry("slurm.sh", *given) == self.expected(here)

    def test_runs_what_a_dry_run_prints(self, here: Launcher) -> None:
        here.fake("sbatch")
        here.make_environment()
        done = here.run("slurm.sh", "--nodes", "2", "--time", "1-12:00:00", CONFIG, *OVERRIDES, cwd=here.root)
        assert done.returncode == 0, done.stderr
        assert here.calls() == [*installs("cuda"), json.dumps(self.expected(here)[1])]

    def test_container(self, here: Launcher) -> None:
        more = ["--gpus-per-node", "4", "--sbatch-option", "--qos=high", "--name=a", "--save-before=60"]
        (submit,) = here.dry("slurm.sh", *more, "--container", "a/b:1", "--mount=/mnt/shared", CONFIG)
        root = here.root
        assert submit == [
            *[*self.SUBMIT, "--qos=high", "--job-name=a", "--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4"],
            *["--signal=B:USR1@60", f"{root}/launch/slurm_job.sh"],
            *[
                "--container-image=a/b:1",
                f"--container-mounts={root}:{root},/mnt/shared:/mnt/shared",
                f"--container-workdir={root}",
            ],
            *["psynth", "train", CONFIG],
        ]

    @pytest.mark.parametrize("status", [0, 3])
    def test_job_runs_a_process_for_each_task(self, here: Launcher, status: int) -> None:
        here.fake("srun", then=self.RUN)
        psynth = here.fake_psynth(f"{RECORD}sys.exit({status})")
        env = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12"}
        done = here.run("slurm_job.sh", str(psynth), "train", CONFIG, *OVERRIDES, **env)
        assert done.returncode == status
        train = ["train", CONFIG, *OVERRIDES]
        begun = ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", str(psynth), *train]
        assert here.words() == [begun, ["psynth", *train]]

    def test_job_saves_before_its_limit_and_is_queued_again(self, here: Launcher) -> None:
        here.fake("srun", then=self.RUN)
        here.fake("scontrol")
        tell = "import signal\nos.kill(int(Path(os.environ['HOME'], 'psynth.pid').read_text()), signal.SIGTERM)\n"
        here.fake("scancel", then=tell)
        process = here.begin("slurm_job.sh", str(here.fake_psynth(WAIT)), "train", CONFIG, SLURM_JOB_ID="7")
        here.words()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0
        assert here.words() == [["scancel", "--signal=TERM", "7"], ["psynth", "told"], ["scontrol", "requeue", "7"]]
