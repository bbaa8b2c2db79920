"""Every exception and warning of rankfold.

Each error derives from `RankfoldError` and from the builtin that fits, so that callers may catch either.
A message is one sentence that names the value that is wrong, then what to do about it.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

# Names from elsewhere whose letters are not like those of ours.
_OWN_NAMES = {"rank": "r", "lora_r": "r", "use_rslora": "scaling", "lr": "learning_rate"}


class RankfoldError(Exception):
    """Any error raised on purpose by rankfold."""


class SpecError(RankfoldError, ValueError):
    """A method, option, factor or target that cannot be built as asked."""


class UnknownAdapterError(SpecError):
    """An adapter that does not exist, or no longer does.

    Args:
        adapter: Its name.
        hint: The names there are, or how to find them.
    """

    def __init__(self, adapter: str, hint: str) -> None:
        super().__init__(adapter, hint)
        self.adapter, self.hint = adapter, hint

    def __str__(self) -> str:
        return f"there is no adapter '{self.adapter}'; {self.hint}."


class DataError(RankfoldError, ValueError):
    """Data that cannot be trained or evaluated on: missing column, empty split, unknown label."""


class AdapterFileError(RankfoldError, ValueError):
    """A saved adapter that is damaged, incomplete, or belongs to another base model."""


class StoreError(RankfoldError, OSError):
    """A store that is damaged, busy, of another version, or cannot be read or written."""


class NoStoreError(StoreError):
    """A file that is no store, or none at all, where a store is to be read."""


class TrainingError(RankfoldError, RuntimeError):
    """A run that cannot go on, such as a loss that is not a number."""


class CheckpointError(TrainingError):
    """A checkpoint whose content does not belong to the run that goes on from it."""


class ThreadError(RankfoldError, RuntimeError):
    """Adapters of a model that one thread changes while another one uses them."""


class OutputExistsError(RankfoldError, FileExistsError):
    """An output that exists already and may not be overwritten."""


class DiskError(RankfoldError, OSError):
    """A disk that is full, or a file that may not become as large as it has to."""


class FullStoreError(StoreError, DiskError):
    """A store that cannot grow, since its disk is full."""


class HubError(RankfoldError, OSError):
    """A model hub that cannot be reached, or refuses."""


class BusyError(OutputExistsError):
    """An output that another process is making at the moment."""


class NotExactError(RankfoldError, ValueError):
    """An operation that could only be done approximately where exactness was asked for."""


class RankfoldWarning(UserWarning):
    """Something that works but that the user can improve by acting."""


def unknown_name(noun: str, name: str, known_names: Iterable[str]) -> SpecError:
    """Return the error for a name that is not known, with the nearest known one as a suggestion.

    Args:
        noun: What the name stands for, such as "method" or "option of method 'lora'".
        name: The name as it was given.
        known_names: The names that would have been accepted.
    """
    names = sorted(known_names)
    near = nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    subject, of, owner = noun.partition(" of ")
    return SpecError(f"unknown {subject} '{name}'{of}{owner}.{hint} Available: {', '.join(names) or 'none'}.")


def nearest(name: str, known_names: Iterable[str]) -> str | None:
    """Return the known name that is meant most likely, or None if none is near.

    Capitals, hyphens and underscores make no difference. A name that something else calls it, such as `lr`,
    comes first; then the one that is most like it in order and in letters, so that a swap counts little.
    """
    plain_name = _plain(name)
    names = {_plain(known_name): known_name for known_name in known_names}
    if (synonym := _OWN_NAMES.get(plain_name)) in names:
        return names[synonym]

    def likeness(candidate: str) -> float:
        matcher = SequenceMatcher(None, plain_name, candidate)
        # The quick ratio is that of the letters in any order.
        return matcher.ratio() + matcher.quick_ratio()

    near = max(get_close_matches(plain_name, names, n=len(names) or 1), key=likeness, default=None)
    return None if near is None else names[near]


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")
