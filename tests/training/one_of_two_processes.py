"""What each of two processes runs in `test_processes.py`.

python -m tests.training.one_of_two_processes PORT NUMBER WORKDIR [STEPS TOLD SIGNAL]

With STEPS it is a run of so many, and process number TOLD gets a signal, "SIGTERM" or "SIGINT", after the second.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.processes import join


def main(port: str, number: str, workdir: str, steps: str = "", told: str = "", name: str = "") -> None:
    join(port, number)
    import numpy as np

    import psynth_jax as ps
    from tests.training.codes import codes, next_gradient, start
    from tests.training.test_processes import MESH, run_config

    model = ps.load_model("tiny-random", mesh=ps.make_mesh(MESH), layers="stacked")
    trainer = start(run_config(workdir, int(steps or 6)), model, codes(model))
    gradient = next_gradient(trainer)
    if number == "0":
        np.savez(Path(workdir) / "gradient.npz", *gradient)
    if number == told:
        train_batch = trainer.train_batch

        def then_terminated(loaded: Any) -> Any:
            if trainer.step == 2:
                os.kill(os.getpid(), signal.Signals[name])
            return train_batch(loaded)

        trainer.train_batch = then_terminated  # type: ignore[method-assign]
    outcome = trainer.run()
    sys.stdout.write(f"{outcome.step} {outcome.reason}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
