"""One training: base models, data, encoding, the Trainer, the Reducer, evaluation, loading.

This package knows transformers, PEFT's public functions and `datasets`; it does not know rankfold's methods.
"""
