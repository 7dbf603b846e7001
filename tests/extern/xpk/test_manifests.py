"""What the real xpk makes of the arguments of launch/gke_xpk.sh: the JobSet that a cluster would get.

xpk runs with --dry-run, and stand-ins for gcloud, kubectl and docker are on its PATH.  The command in a
manifest is then run by bash, as a pod would run it.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CONFIG = "configs/tiny.yaml"
OVERRIDES = ["mesh=fsdp=32", 'model=it\'s a "model"', "workdir=gs://b/$HOME `x` * \\", "note=two\nlines: 'x'"]
POD = ["--cluster=c", "--workload=w", "--project=p-1", "--zone=us-east5-a"]
RECORD = f"""#!{sys.executable} -IS
import json, sys
from pathlib import Path
with open(Path(sys.argv[0]).parent / "log", "a") as log:
    log.write(json.dumps(sys.argv) + chr(10))
"""


class Checkout:
    """A committed copy of the launch scripts, an xpk that is real, and tools that are not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "checkout"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("launch", "configs"):
            shutil.copytree(ROOT / name, self.root / name)
        for tool in ("gcloud", "kubectl", "docker"):
            self.script(self.bin / tool, RECORD)
        environment = Path(sys.executable).parent
        path = f"{self.bin}:{environment}:/usr/bin:/bin"
        # The last is xpk's own switch: no figures of use are sent.
        self.env = {"PATH": path, "HOME": str(folder), "TELEMETRY_ENABLED": "false"}
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message=all")

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.root, env=self.env, check=True)

    @staticmethod
    def script(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def jobset(self, *arguments: str, run: list[str]) -> dict[str, Any]:
        """Return the manifest that xpk writes."""
        manifest = self.folder / "manifest.yaml"
        options = ["--dry-run", "--skip-validation", f"--output-manifest-file={manifest}"]
        passed_on = [f"--xpk-option={option}" for option in options]
        command = ["bash", "launch/gke_xpk.sh", *POD, *arguments, *passed_on, *run]
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (document,) = yaml.safe_load_all(manifest.read_text())
        return document

    def calls(self) -> list[str]:
        """Return which tools xpk has called."""
        log = self.bin / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [Path(json.loads(line)[0]).name for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def pod_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("given", "accelerator", "topology", "pods"),
    [
        ("v5e-16", "tpu-v5-lite-podslice", "4x4", 4),
        ("v5p-64", "tpu-v5p-slice", "2x4x4", 8),
        ("v6e-16", "tpu-v6e-slice", "4x4", 4),
        ("tpu7x-16", "tpu7x", "2x2x2", 2),
    ],
)
def test_jobset(checkout: Checkout, given: str, accelerator: str, topology: str, pods: int) -> None:
    jobset = checkout.jobset("--tpu-type", given, run=[CONFIG, "mesh=fsdp=32"])
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "w")
    labels = {"kueue.x-k8s.io/queue-name": "multislice-queue", "xpk.google.com/workload": "w"}
    assert jobset["metadata"]["labels"] == labels
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 50

    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (1, pods, pods)
    # Any other exit code ends the job: those of training that cannot go on, 1 and 2, among them.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert rule["onExitCodes"]["values"] == [42, *range(127, 256)]

    pod = pod_of(jobset)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    if given == "tpu7x-16":
        selector["cloud.google.com/placement-policy-name"] = "tpu7x-16-2x2x2-placement-policy"
    assert pod["nodeSelector"] == selector
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    *shell, script = container["command"]
    assert shell == ["bash", "-c"]
    assert f"(exec bash launch/gke_worker.sh {CONFIG} mesh=fsdp=32) & PID=$!;" in script
    assert set(checkout.calls()) <= {"gcloud"}  # which may be asked for settings, not for work


def test_options_reach_xpk(checkout: Checkout) -> None:
    image = "us-docker.pkg.dev/p-1/images/psynth:1"
    options = ["--docker-image", image, "--max-restarts=3"]
    passed_on = ["--xpk-option", "--priority=high", "--xpk-option=--spot", "--xpk-option=--namespace=team"]
    jobset = checkout.jobset("--tpu-type=v6e-16", *options, *passed_on, run=[CONFIG])
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 3
    pod = pod_of(jobset)
    assert pod["priorityClassName"] == "high"
    assert pod["containers"][0]["image"] == image


def test_commit_is_what_the_image_gets(checkout: Checkout) -> None:
    checkout.jobset("--tpu-type=v6e-16", run=[CONFIG])
    stage = checkout.root / ".launch" / "w"
    staged = {path.relative_to(stage) for path in stage.rglob("*") if path.is_file()}
    assert {Path(CONFIG), Path("launch/gke_worker.sh")} <= staged


def test_words_arrive_in_a_pod_as_they_are(checkout: Checkout) -> None:
    jobset = checkout.jobset("--tpu-type=v5p-64", run=[CONFIG, *OVERRIDES])
    stage = checkout.root / ".launch" / "w"
    record = 'printf "%s\\0" "$@" >words\nexit 42\n'
    checkout.script(stage / "launch" / "gke_worker.sh", record)
    command = pod_of(jobset)["containers"][0]["command"]
    done = subprocess.run(command, cwd=stage, env=checkout.env, capture_output=True, text=True)
    assert done.returncode == 42, done
    assert (stage / "words").read_text().split("\0")[:-1] == [CONFIG, *OVERRIDES]


def test_sigterm_reaches_training_and_restarts_the_job(checkout: Checkout) -> None:
    jobset = checkout.jobset("--tpu-type=v5p-64", run=[CONFIG])
    stage = checkout.root / ".launch" / "w"
    # As the real one does: it has training save, and then ends with 143.
    worker = "trap 'echo saved >saved; exit 143' TERM\necho ready\nwhile :; do sleep 0.1; done\n"
    checkout.script(stage / "launch" / "gke_worker.sh", worker)
    command = pod_of(jobset)["containers"][0]["command"]
    with subprocess.Popen(command, cwd=stage, env=checkout.env, stdout=subprocess.PIPE, text=True) as pod:
        assert pod.stdout
        while pod.stdout.readline() != "ready\n":
            assert pod.poll() is None
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(60) == 143
    assert (stage / "saved").read_text() == "saved\n"
