"""What each of two processes runs in `test_identity.py`: load a model, of which each reads only its own pieces.

python -m tests.convert.one_of_two_processes PORT NUMBER SOURCE
"""

from __future__ import annotations

import sys
from typing import Any

from tests.processes import join


def main(port: str, number: str, source: str) -> None:
    join(port, number)
    import psynth_jax as ps
    from psynth_jax.convert import stored

    def looked_up(*_: Any) -> None:
        raise AssertionError("one of the two has read every sample")

    stored.picked = looked_up  # type: ignore[assignment]
    model = ps.load_model(source, "float16", ps.make_mesh("fsdp=4,tensor=2"))
    sys.stdout.write(model.fingerprint + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
