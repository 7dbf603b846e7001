"""Train an adapter for SmolLM2-135M from branches, or from text, for some minutes; start it again to go on.

    launch/adapter.sh [--reads branches|text] [--minutes 6] [--into FOLDER] [--miniature] [KEY=VALUE ...]

It needs a GPU, no network, and what launch/pack.sh has packed in pack/, unless this Python has all packages.  KEY=VALUE
overrides configs/recipe-branches.yaml or recipe-text.yaml.  A start ends in time to save within the minutes.

    INTO/run/            the run: checkpoints, metrics, adapter/; its curves in report/
    INTO/evaluation/     when the run has ended: F1 of the adapter and of its controls on generated test questions
    INTO/starts.jsonl    a line for each start: what it did, on what, how fast

--miniature does all of it with a tiny model on the CPU, in about two minutes, from a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from archives import Wrong
from gpu_environment import ROOT, prepared

SAVING = 35.0  # seconds that are left for the save and the export when the time is over
TERMINATED = 143  # exit code of psynth train after SIGTERM, which it answers with a save
QUESTIONS = 240  # of the evaluation
METHODS = {"branches": "branches,identity,question,wrong-branches", "text": "text-lora,text"}
MINIATURE = (
    *("model=tiny-random", "dtype=float32", "data=[{synthetic: 48}]", "evaluation=[{synthetic: 8}]"),
    *("trainable.rank=4", "batch.tokens=4096", "batch.examples=8", "batch.shapes=2", "optimizer.warmup=2"),
    *("train.steps=6", "train.evaluate_every=3", "checkpoint.every=2"),
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")


class Start:
    """One start of the recipe."""

    def __init__(self, given: argparse.Namespace, environment: dict[str, str]) -> None:
        self.given, self.environment = given, environment
        folder = f"runs/adapter-{given.reads}" + ("-miniature" if given.miniature else "")
        self.into: Path = given.into or ROOT / folder
        self.workdir = self.into / "run"
        self.seconds: dict[str, float] = {}
        self.begin = time.monotonic()

    def psynth(self, *words: str, limit: float | None = None) -> tuple[int, str]:
        """Run a command of psynth; return its exit code and what it printed on stdout.

        limit: seconds after which it is told to end, once, by SIGTERM.
        """
        command = [sys.executable, "-m", "psynth_jax", *words]
        process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True)
        previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            try:
                said, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.terminate()
                said, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
        return process.returncode, said

    def timed(self, stage: str, *words: str, limit: float | None = None) -> tuple[int, str]:
        """Run a command and note its seconds."""
        begin = time.monotonic()
        found = self.psynth(*words, limit=limit)
        self.seconds[stage] = round(time.monotonic() - begin, 1)
        return found

    def train(self) -> tuple[int, dict[str, Any]]:
        """Train until the end, or until the time is over; return the exit code and what psynth says."""
        overrides = [f"workdir={self.workdir}", *self.given.overrides]
        if self.given.miniature:
            named = {key_of(text) for text in self.given.overrides}
            overrides += [text for text in MINIATURE if key_of(text) not in named]
        config = f"configs/recipe-{self.given.reads}.yaml"
        left = 60 * self.given.minutes - SAVING - (time.monotonic() - self.begin)
        code, said = self.timed("train", "train", config, *overrides, "--json", limit=left)
        if code not in (0, TERMINATED):
            return code, {}
        return code, json.loads(said)

    def report(self, outcome: dict[str, Any]) -> None:
        """Draw the curves, and evaluate the adapter of a run that has ended."""
        self.timed("report", "report", "train", str(self.workdir))
        if outcome["reason"] != "done":
            return
        questions = self.into / "questions.jsonl"
        count = "8" if self.given.miniature else str(QUESTIONS)
        generate = ("--option", "split=test", "--seed", "12", "--limit", count, "--records", str(questions))
        self.timed("questions", "data", "prepare", "synthetic", *generate)
        adapter = "--text-adapter" if self.given.reads == "text" else "--adapter"
        model = "tiny-random" if self.given.miniature else "smollm2-135m"
        words = ("--data", str(questions), "--model", model, adapter, outcome["adapter"])
        words += ("--methods", METHODS[self.given.reads], "--into", str(self.into / "evaluation"))
        self.timed("evaluate", "eval", *words)

    def note(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Append a line on this start, and return it."""
        self.seconds["all"] = round(time.monotonic() - self.begin, 1)
        line = {
            "begin": outcome["begin"],
            "step": outcome["step"],
            "reason": outcome["reason"],
            "seconds": self.seconds,
            **self._measured(outcome["begin"]),
            "overrides": self.given.overrides,
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in PACKAGES},
        }
        with (self.into / "starts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def _measured(self, begin: int) -> dict[str, Any]:
        """Return medians over the steps of this start, and the seconds that all of them took."""
        steps = []
        for text in (self.workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if "step_seconds" in line and line["step"] > begin:
                steps.append(line)
        found: dict[str, Any] = {"training_seconds": round(sum(line["step_seconds"] for line in steps), 1)}
        for name in ("step_seconds", "mfu", "filled", "flops_per_s"):
            values = [line[name] for line in steps if line.get(name) is not None]
            found[name] = statistics.median(values) if values else None
        return found


def key_of(text: str) -> str:
    """Return KEY of KEY=VALUE."""
    return text.partition("=")[0]


def override(text: str) -> str:
    """Return KEY=VALUE as it is given."""
    if not re.match(r"[a-z_][\w.]*=", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    if text.startswith("workdir="):
        raise argparse.ArgumentTypeError("the workdir is INTO/run: give --into")
    return text


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "launch/adapter.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reads", choices=list(METHODS), default="branches", help="what the synthesizer learns to read")
    parser.add_argument("--minutes", type=float, default=6.0, help="of this start, 6 if not given")
    parser.add_argument("--into", type=Path, help="folder of the results, runs/adapter-READS if not given")
    parser.add_argument("--miniature", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("overrides", nargs="*", type=override, metavar="KEY=VALUE", help="of the config")
    given = parser.parse_args()
    if 60 * given.minutes <= SAVING:
        parser.error(f"--minutes must leave {SAVING:.0f} seconds for the save")
    if given.into is not None:
        given.into = given.into.absolute()
    return given


def main() -> int:
    """Train; return the exit code."""
    given = arguments()
    if given.miniature:
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif not any(Path("/dev").glob("nvidia[0-9]*")):
        print("there is no GPU here: --miniature tries all of it with a tiny model on the CPU", file=sys.stderr)
        return 2
    try:
        start = Start(given, prepared())
        start.into.mkdir(parents=True, exist_ok=True)
        code, outcome = start.train()
        if not outcome:
            return code
        start.report(outcome)
        line = start.note(outcome)
    except (Wrong, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(line))
    again = "" if outcome["reason"] == "done" else "; start it again to go on"
    print(f"steps {line['begin']} to {line['step']}, {start.into}{again}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
