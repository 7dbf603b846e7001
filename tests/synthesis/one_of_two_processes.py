"""What each of two processes runs in `test_sharded.py`.

python -m tests.synthesis.one_of_two_processes PORT NUMBER
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from typing import Any

from psynth_jax.errors import InputError
from tests.processes import join


def main(port: str, number: str) -> None:
    join(port, number)
    import jax

    from psynth_jax.engine import machine
    from psynth_jax.kv import pool
    from tests.synthesis.test_sharded import PROMPTS, QUESTIONS, TARGETS, TEXTS, synthesizer

    machine.LEAST_SLOTS = 512  # of every block: eight pages
    machine.lag_here = lambda: 1  # as on accelerators
    freed = list[int]()
    ask_first = pool.said_by_first

    def noted(mesh: Any, numbers: Any) -> list[int]:
        said = ask_first(mesh, numbers)
        freed.extend(said)
        return said

    pool.said_by_first = noted
    synth = synthesizer("data=2,branch=2,tensor=2")
    branches = synth.work(PROMPTS, max_new_tokens=6)
    found = {
        "devices": jax.device_count(),
        "workers": branches.token_ids,
        "answers": [result.token_ids for result in synth.synthesize(QUESTIONS, branches, max_new_tokens=5)],
        "scores": [logp.tolist() for logp in synth.score(QUESTIONS, TARGETS, branches)],
        "thread": refused_in_a_thread(synth, QUESTIONS),
        "dropped": [logp.tolist() for logp in after_drops(synth, TEXTS, QUESTIONS, TARGETS, keeps=number == "1")],
        "slots": synth.runner.pool.allocator.slots,
        "used": synth.runner.pool.used_slots,
        "freed": freed,
    }
    sys.stdout.write(json.dumps(found) + "\n")


def refused_in_a_thread(synth: Any, questions: Any) -> str:
    """Return what a call from another thread than the first one says."""
    said: list[str] = []

    def ask() -> None:
        try:
            synth.synthesize(questions, max_new_tokens=1)
        except InputError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask, name="the-second")
    thread.start()
    thread.join()
    return said[0]


def after_drops(synth: Any, texts: Any, questions: Any, targets: Any, *, keeps: bool) -> list[Any]:
    """Fill the pool several times over with branches that are dropped; `keeps`: but this process holds on to them."""
    gc.disable()
    held, scores = [], []
    for turn in range(8):
        made = synth.encode([text[turn % 3 :] for text in texts])
        made.cycle = made  # only the garbage collector finds it
        scores.append(synth.score(questions[0], targets[0], made))
        if keeps:
            held.append(made)
        elif turn % 2:
            del made
            gc.collect()
    gc.enable()
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
