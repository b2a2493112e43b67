"""The model: resolves `model.source` to the facts that planning needs, and to a folder of weights."""
