"""Adapters inside PEFT: the only package that knows PEFT's internals."""

# PEFT comes first: its import registers the plugin, and must not happen in the middle of the plugin's own.
import peft as peft
