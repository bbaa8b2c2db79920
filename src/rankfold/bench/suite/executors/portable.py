"""Errors that go from one process to another."""

import contextlib
import pickle

from rankfold.errors import TrainingError


def portable(error: Exception) -> Exception:
    """Return the error, or its words as a `TrainingError` where it cannot be sent as it is."""
    with contextlib.suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):  # noqa: S301 (our own object)
            return error
    return TrainingError(f"{type(error).__name__}: {error}")
