"""Every exception and warning of rankfold.

Each error derives from `RankfoldError` and from the builtin that fits, so that callers may catch either.
A message is one sentence that names the value that is wrong, then what to do about it.
"""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches


class RankfoldError(Exception):
    """Any error raised on purpose by rankfold."""


class SpecError(RankfoldError, ValueError):
    """A method, option, factor or target that cannot be built as asked."""


class DataError(RankfoldError, ValueError):
    """Data that cannot be trained or evaluated on: missing column, empty split, unknown label."""


class AdapterFileError(RankfoldError, ValueError):
    """A saved adapter that is damaged, incomplete, or belongs to another base model."""


class StoreError(RankfoldError, OSError):
    """A store that is damaged, busy, of another version, or cannot be read or written."""


class TrainingError(RankfoldError, RuntimeError):
    """A run that cannot go on, such as a loss that is not a number."""


class OutputExistsError(RankfoldError, FileExistsError):
    """An output that exists already and may not be overwritten."""


class BusyError(OutputExistsError):
    """An output that another process is making at the moment."""


class NotExactError(RankfoldError, ValueError):
    """An operation that could only be done approximately where exactness was asked for."""


class RankfoldWarning(UserWarning):
    """Something that works but that the user can improve by acting."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SpecError:
    """Return the error for a name that is not known, with the nearest known one as a suggestion.

    Args:
        kind: What the name stands for, such as "method" or "option of method 'lora'".
        name: The name as it was given.
        known: The names that would have been accepted.
    """
    names = sorted(known)
    near = _nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    noun, of, owner = kind.partition(" of ")
    return SpecError(f"unknown {noun} '{name}'{of}{owner}.{hint} Available: {', '.join(names) or 'none'}.")


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """Return the name that is most like another: in order, and in letters, so that a swap counts little."""

    def likeness(other: str) -> float:
        matcher = SequenceMatcher(None, name, other)
        # The quick ratio is that of the letters in any order.
        return matcher.ratio() + matcher.quick_ratio()

    near = get_close_matches(name, names, n=len(names) or 1)
    return max(near, key=likeness, default=None)
