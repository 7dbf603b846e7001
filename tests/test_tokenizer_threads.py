"""Tokenizers that several threads need at the same time."""

from __future__ import annotations

import subprocess
import sys


def test_several_threads_may_be_the_first_to_build_one() -> None:
    """In a process of its own: transformers resolves a name once, and two threads at once broke it."""
    code = """
import threading
from psynth_jax.tokenizer import Tokenizer

together = threading.Barrier(8)
built = []

def build():
    together.wait()
    built.append(Tokenizer.of_bytes().encode("a"))

threads = [threading.Thread(target=build) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(built) == 8 and all(each == built[0] for each in built)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
