"""The examples that a config names: directories of tokenised examples, or generated ones."""

from __future__ import annotations
