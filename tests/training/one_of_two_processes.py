"""What each of two processes runs in `test_processes.py`.

python -m tests.training.one_of_two_processes PORT NUMBER WORKDIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.processes import join


def main(port: str, number: str, workdir: str) -> None:
    join(port, number)
    import numpy as np

    import psynth_jax as ps
    from tests.training.codes import codes, next_gradient, start
    from tests.training.test_processes import MESH, run_config

    model = ps.load_model("tiny-random", mesh=ps.make_mesh(MESH))
    trainer = start(run_config(workdir), model, codes(model))
    gradient = next_gradient(trainer)
    if number == "0":
        np.savez(Path(workdir) / "gradient.npz", *gradient)
    outcome = trainer.run()
    sys.stdout.write(f"{outcome.step} {outcome.reason}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
