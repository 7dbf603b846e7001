"""A run during which no file may grow any more, as on a full disk; it prints the error that ends it.

python -m tests.training.full_disk WORKDIR
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main(workdir: str) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import psynth_jax as ps
    from psynth_jax.errors import TrainingError
    from tests.training.codes import codes, start
    from tests.training.examples import config

    def fill_up(step: int, _: Mapping[str, Any]) -> None:
        if step == 3:
            while not Path(workdir, "checkpoints", "2").exists():  # it has this name when it is whole
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))

    model = ps.load_model("tiny-random", layers="stacked")
    run = config(workdir, checkpoint={"every": 2}, trainable={"rank": 64})
    try:
        start(run, model, codes(model), fill_up).run()
    except TrainingError as error:
        sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
