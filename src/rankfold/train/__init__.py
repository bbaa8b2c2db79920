"""Training: the Trainer and its checkpoints, optimiser groups, auxiliary losses, the Reducer.

This package knows transformers and adapters; it does not know rankfold's presets.
"""
