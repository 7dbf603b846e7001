"""From questions to answers: workers decode as one batch, the synthesizer reads their caches.

prompts.py   role texts, the wording of prompts        step.py      the one compiled step
sampling.py  logits -> token, per row                  engine.py    prefill, decode and scoring by steps
workers.py   prompts -> branches                       pipeline.py  ParallelSynthesis, the public surface
"""
