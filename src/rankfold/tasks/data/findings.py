"""Findings: remarks on data that are worth reading before a training, such as unused columns."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

logger = logging.getLogger("rankfold.tasks")


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark on data or examples that the user may want to act on; it is no error.

    Args:
        name: An identifier for programs, the same for all remarks of this sort, such as "duplicates".
        message: One sentence with the numbers, the first rows or values, and the remedy if there is one.
    """

    name: str
    message: str


def log_findings(findings: Iterable[Finding]) -> None:
    """Log each message once, at level INFO."""
    for message in dict.fromkeys(finding.message for finding in findings):
        logger.info("%s", message)
