"""WORK: base models, data, encoding, training with `transformers.Trainer`, evaluation, loading.

This package knows transformers, PEFT's public functions and `datasets`; it does not know rankfold's methods.
"""
