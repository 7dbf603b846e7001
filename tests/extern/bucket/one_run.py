"""A run of six steps that saves after every second one, in a process of its own.

    python -m tests.extern.bucket.one_run WORKDIR [KILLED_AT]

KILLED_AT: the step whose save kills the process, when all arrays are written and the checkpoint is not yet finished.
"""

from __future__ import annotations

import os
import signal
import sys


def main(workdir: str, killed_at: str = "") -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import psynth_jax as ps
    from psynth_jax.training import checksums
    from psynth_jax.training.tasks import TaskData
    from psynth_jax.training.trainer import Trainer
    from tests.training.codes import codes
    from tests.training.examples import config

    def note(checkpoint: object) -> None:
        if str(checkpoint).endswith(f"/checkpoints/{killed_at}"):
            os.kill(os.getpid(), signal.SIGKILL)
        noted(checkpoint)  # type: ignore[arg-type]

    noted, checksums.note = checksums.note, note  # type: ignore[assignment]
    run = config(workdir, checkpoint={"every": 2, "keep": 9}, logging={"tensorboard": True})
    model = ps.load_model("tiny-random", layers="stacked")
    data = [TaskData(run.data[0], codes(model, 8))]
    Trainer(run, model, data, say=lambda text: print(text, flush=True)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
