"""Encoding, answers by likelihood or by writing them, predictions and metrics."""
