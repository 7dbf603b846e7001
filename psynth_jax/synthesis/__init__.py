"""From questions to answers: workers decode as one batch, the synthesizer reads their caches.

inputs.py    texts -> checked token ids                sampling.py  the options of a call
runner.py    sequences over a model's pool             outputs.py   sampled tokens -> text, token by token
workers.py   prompts -> branches                       pipeline.py  ParallelSynthesis, the public surface
"""
