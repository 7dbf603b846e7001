"""One of two processes that train together with their workdir in a bucket.

python -m tests.extern.bucket.one_of_two PORT NUMBER WORKDIR STEPS
"""

from __future__ import annotations

import sys

from tests.processes import join


def main(port: str, number: str, workdir: str, steps: str) -> None:
    join(port, number)
    import psynth_jax as ps
    from tests.training.codes import codes, start
    from tests.training.test_processes import MESH, run_config

    model = ps.load_model("tiny-random", mesh=ps.make_mesh(MESH), layers="stacked")
    trainer = start(run_config(workdir, int(steps)), model, codes(model))
    begun = trainer.step
    outcome = trainer.run()
    sys.stdout.write(f"{begun} to {outcome.step}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
