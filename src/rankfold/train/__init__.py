"""One training: its loop and checkpoints (`trainer`, `checkpoint`), and all that it is made of.

This package knows transformers, PEFT's public functions and `datasets`; it does not know rankfold's methods.
"""
