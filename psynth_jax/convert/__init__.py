"""Checkpoints of other projects, both ways: Hugging Face directories, GGUF files, and what they are called.

`rules` says which tensor is which parameter, `hf` and `gguf` read one format each, `load` finds a model by its name.
"""
