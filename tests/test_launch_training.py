"""The scripts that start training on a machine: what they run, and that words and signals arrive as they are.

Programs that write their arguments, as JSON, into a log stand in for psynth, curl, srun and others.  What a launcher has
another machine run is run here, by a shell, in a copy of the checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher import CONFIG, OVERRIDES, RECORD, TOOLS, WAIT, Launcher, one_line
from tests.test_launch import executable, installs

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in TOOLS), reason="git, or a tool of Linux that the scripts need, is missing"
)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Launcher]:
    yield Launcher(tmp_path)
    waiting = tmp_path / "psynth.pid"  # if a test has failed before it told psynth to end
    if waiting.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(waiting.read_text()), signal.SIGKILL)


SLICE = ["--name", "s", "--zone=us-west4-a", "--project", "p-1"]
POD = ["--cluster", "c", "--workload", "w", "--tpu-type", "v5p-64"]


class TestArguments:
    @pytest.mark.parametrize(
        ("script", "arguments", "message"),
        [
            ("train.sh", [], "CONFIG is missing"),
            ("train.sh", ["absent.yaml"], "no config absent.yaml"),
            ("train.sh", ["--fast", CONFIG], "unknown option --fast"),
            ("tpu_worker.sh", [], "usage"),
            ("tpu_worker.sh", ["rm", "-rf"], "usage"),
            ("tpu_worker.sh", ["start"], "CONFIG is missing"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_line(self, here: Launcher, script: str, arguments: list[str], message: str) -> None:
        here.fake("gcloud", "xpk", "sbatch", "curl")
        assert message in one_line(here.run(script, *arguments, cwd=here.root))
        assert here.calls() == []

    @pytest.mark.parametrize("script", ["train.sh"])
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
        script = here.root / "launch" / "commands.sh"
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


class TestTpuWorker:
    """What tpu_vm.sh has a worker run, run in a home folder that has what it sends."""

    @pytest.fixture
    def worker(self, here: Launcher) -> Launcher:
        here.root = here.root.rename(here.root.with_name("psynth_jax"))
        here.venv = here.root / ".venv"
        self.metadata(here, "10.0.0.1,10.0.0.2,10.0.0.3")
        return here

    @staticmethod
    def metadata(worker: Launcher, endpoints: str, **attributes: str) -> None:
        """Have curl answer as the metadata server does, which fails for an attribute that it does not have."""
        answers = {"worker-network-endpoints": endpoints, **(attributes or {"agent-worker-number": "2"})}
        answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        ask = f"answer = {answers!r}.get(sys.argv[-1].rpartition('/')[2])\n"
        check = "assert 'Metadata-Flavor: Google' in sys.argv\n"
        worker.fake("curl", then=f"{ask}{check}if answer is None:\n    sys.exit(22)\nprint(answer)\n")

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

    @pytest.mark.parametrize("attribute", ["agent_worker_number", "tpu_env"])
    def test_number_of_a_worker_of_compute_engine(self, worker: Launcher, attribute: str) -> None:
        """Compute Engine gives names of VMs instead of addresses, and may tell the number in tpu-env alone."""
        told = {"agent_worker_number": "1", "tpu_env": "ZONE: 'a'\nTPU_WORKER_ID: '1'\nTOPOLOGY: '2x4'"}
        self.metadata(worker, "s-1wjb,s-1z9d", **{attribute: told[attribute]})
        names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
        worker.fake_psynth(RECORD.replace("*sys.argv[1:]", f"*map(os.environ.get, {names})"))
        assert worker.run("tpu_worker.sh", "start", CONFIG).returncode == 0
        self.ended(worker)
        assert worker.words()[-1] == ["psynth", "s-1wjb:8482", "2", "1"]

    def test_a_worker_without_a_number_does_not_start(self, worker: Launcher) -> None:
        worker.fake_psynth()
        self.metadata(worker, "s-1wjb,s-1z9d", tpu_env="TOPOLOGY: '2x4'")
        assert "names no WORKER_ID" in one_line(worker.run("tpu_worker.sh", "start", CONFIG))
        assert {words[0] for words in worker.words()} == {"curl"}

    def test_logs_of_one_worker(self, worker: Launcher) -> None:
        worker.fake("tail")
        for number in ("1", "2"):  # it is 2
            assert worker.run("tpu_worker.sh", "logs", number).returncode == 0
        followed = [words for words in worker.words() if words[0] != "curl"]
        assert followed == [["tail", "-n", "100", "-F", "train.log"]]

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
        uv = ["-m pip install --user --quiet uv", "-m uv python install 3.12", "-m uv python find 3.12"]
        assert calls[:4] == ["-m pip --version", *uv]
        assert f"-m venv {worker.venv}" in calls


class TestGke:
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
    RUN = """
import os
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
os.execvp(words[0], words)
"""

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
