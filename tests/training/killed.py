"""A run that saves after every step and does not end by itself, to be killed by `test_processes.py`.

python -m tests.training.killed WORKDIR PROGRAMS
"""

from __future__ import annotations

import os
import sys


def main(workdir: str, programs: str) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    import psynth_jax as ps
    from tests.training.codes import codes, start
    from tests.training.examples import config

    def say(*words: object) -> None:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    run = config(
        workdir,
        train={"steps": 100_000},
        checkpoint={"every": 1, "keep": 2},
        optimizer={"schedule": "constant"},
        trainable={"rank": 64},
    )
    model = ps.load_model("tiny-random", layers="stacked")
    trainer = start(run, model, codes(model, 8), lambda step, _: say("step", step))
    say("begin", trainer.step)
    trainer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
