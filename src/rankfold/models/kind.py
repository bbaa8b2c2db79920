"""What a task asks of a model."""

from enum import StrEnum


class Kind(StrEnum):
    """What a task asks of a model."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    INSTRUCTION = "instruction"


def default_max_length(kind: Kind) -> int:
    """Return the most tokens of a row where nobody has said: 128, or 256 for instructions."""
    return 256 if kind is Kind.INSTRUCTION else 128
