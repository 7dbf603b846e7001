"""The whole method once more, in torch and transformers, from its definition, sharing no code with the package."""
