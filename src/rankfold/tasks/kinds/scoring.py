"""How an answer to a question with choices is scored, and which choice a text names."""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import takewhile

from rankfold.errors import unknown_name

NOTHING_NAMED = -1
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
    """Return the index of the candidate that a text names first, or `NOTHING_NAMED`.

    A candidate is named by its words without those that all candidates begin with: "the correct answer is
    solution2" by "solution2". It counts as whole words only, in capitals or not.

    Args:
        text: What a model wrote.
        candidates: The whole answers.

    Example:
        >>> named_choice("I think it is solution2.", ["the answer is solution1", "the answer is solution2"])
        1
    """
    names = _own_words(candidates)
    fold: Callable[[str], str] = str.casefold
    if len({fold(name) for name in names}) < len(names):  # they differ in nothing else
        fold = str
    folded = [fold(name) for name in names]
    # Where two begin at the same place the longer one is meant.
    pattern = "|".join(re.escape(name) for name in sorted(folded, key=len, reverse=True) if name)
    found = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", fold(text))
    return folded.index(found[0]) if found else NOTHING_NAMED


def _own_words(candidates: Sequence[str]) -> list[str]:
    words = [candidate.split(" ") for candidate in candidates]
    # The last word is a candidate's own in any case.
    beginnings = zip(*(each[:-1] for each in words), strict=False)
    shared = len(list(takewhile(lambda together: len(set(together)) == 1, beginnings)))
    return [" ".join(each[shared:]) for each in words]
