"""Run the programs that come on stdin, one JSON object a line, and say how each ended.

A script: it runs as another user, with a Python that has none of the test's packages.
"""

from __future__ import annotations

import dataclasses
import json
import sys

sys.path.insert(0, sys.argv[1])

from psynth_jax import sandbox
from psynth_jax.errors import UserError


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        limits = sandbox.Limits(**asked["limits"])
        try:
            outcome = sandbox.run(asked["program"], limits, asked["backend"])
            answer = dataclasses.asdict(outcome)
        except UserError as failed:
            answer = {"error": str(failed)}
        print(json.dumps(answer), flush=True)


main()
