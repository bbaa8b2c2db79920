"""Calling the code as a user does, without the type checks that the tests add to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping


@contextmanager
def unchecked_types() -> Iterator[None]:
    """Let a value of a wrong type reach the library's own check, which is the one that a user meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
