"""What each of two processes runs in `test_sharded.py`.

python -m tests.synthesis.one_of_two_processes PORT NUMBER
"""

from __future__ import annotations

import json
import sys

from tests.processes import join


def main(port: str, number: str) -> None:
    join(port, number)
    import jax

    from tests.synthesis.test_sharded import PROMPTS, QUESTIONS, TARGETS, synthesizer

    synth = synthesizer("data=2,branch=2,tensor=2")
    branches = synth.work(PROMPTS, max_new_tokens=6)
    found = {
        "devices": jax.device_count(),
        "workers": branches.token_ids,
        "answers": [result.token_ids for result in synth.synthesize(QUESTIONS, branches, max_new_tokens=5)],
        "scores": [logp.tolist() for logp in synth.score(QUESTIONS, TARGETS, branches)],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
