"""What checks annotations while tests run: beartype, for the packages that conftest.py names."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

from beartype import BeartypeConf, beartype

Checked = TypeVar("Checked", bound=Callable[..., Any])

# As type checkers have it, an int is welcome where a float is asked for.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Checked) -> Checked:
    """Return the function with checked arguments and result.

    jaxtyping decorates each method on its own, where beartype cannot know which class `Self` is; that one
    hint is not checked.
    """
    hints = getattr(function, "__annotations__", {})
    for name, hint in hints.items():
        if hint is Self:
            hints[name] = Any
    return _check(function)
