"""Scoring: how an answer with choices is found, and which choice a text names."""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import takewhile

from rankfold.errors import unknown_name

NO_CHOICE = -1
"""The prediction where a generated text names no choice; it equals no label."""


class Scoring(StrEnum):
    """How the answer of a model that generates text is found.

    Attributes:
        LIKELIHOOD: The choice whose tokens, the end of text among them, are likeliest on average.
        TOTAL_LIKELIHOOD: The choice that is likeliest as a whole, which favours short ones.
        GENERATED: The choice that the model names when it continues the prompt greedily.
    """

    LIKELIHOOD = "likelihood"
    TOTAL_LIKELIHOOD = "total_likelihood"
    GENERATED = "generated"


def check_scoring(name: str | None) -> None:
    """Check that there is a way of scoring of this name.

    Raises:
        SpecError: If there is none.
    """
    if name is not None and name not in set(Scoring):
        raise unknown_name("scoring", name, Scoring)


def named_choice(text: str, candidates: Sequence[str]) -> int:
    """Return the index of the candidate that a text names first, or `NO_CHOICE`.

    A candidate is named by its words without those that all candidates begin with: "the correct answer is
    solution2" by "solution2". It counts as whole words only, in capitals or not.

    Args:
        text: Written by a model.
        candidates: The whole answers.

    Example:
        >>> named_choice("I think it is solution2.", ["the answer is solution1", "the answer is solution2"])
        1
    """
    names = _own_words(candidates)
    fold: Callable[[str], str] = str.casefold
    if len({fold(name) for name in names}) < len(names):  # they differ in nothing else
        fold = str
    folded_names = [fold(name) for name in names]
    # Where two begin at the same position the longer one is meant.
    pattern = "|".join(re.escape(name) for name in sorted(folded_names, key=len, reverse=True) if name)
    match = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", fold(text))
    return folded_names.index(match[0]) if match else NO_CHOICE


def _own_words(candidates: Sequence[str]) -> list[str]:
    """Return each candidate without the words that all of them begin with."""
    words = [candidate.split(" ") for candidate in candidates]
    # The last word is a candidate's own in any case.
    beginnings = zip(*(item[:-1] for item in words), strict=False)
    shared_count = len(list(takewhile(lambda together: len(set(together)) == 1, beginnings)))
    return [" ".join(item[shared_count:]) for item in words]
