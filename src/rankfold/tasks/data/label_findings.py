"""Findings on class labels: counts, near-duplicates, missing values, separators, numbers and rare classes."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rankfold.tasks.data.labels import count_labels
from rankfold.tasks.data.numbers import MISSING_NUMBERS, is_missing, is_number_text
from rankfold.tasks.data.table import Finding, Table

SEPARATORS = (";", "|", ",")
"""Separators of several labels in one text."""

IMBALANCED = "imbalanced_classes"
"""The finding that one class has nearly all rows."""

_TRUTHS = {
    word: meaning
    for meaning, words in {
        True: ("true", "t", "yes", "y", "1"),
        False: ("false", "f", "no", "n", "0"),
    }.items()
    for word in words
}
"""Words for true and false, each with its meaning."""

# Letters of the Cyrillic and the Greek alphabet that look like a Latin one, in capitals and small.
_LOOK_ALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјорсухһԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧοναρχϲ",
    "ABESIJKMHOPCTYXaesijopcyxhdqwABEZHIKMNOPTYXovapxc",
)

_VARIATIONS = "\ufe0e\ufe0f"
"""Characters that choose between the plain and the coloured form of a sign."""

_LISTED = 20
_LISTED_GROUPS = 5
_RARE = 0.05
_FEW_ROWS = 5
_LONG_ENOUGH = 5
# With more of the rows in one class, the accuracy says hardly anything.
_MAJORITY = 0.9


def label_findings(column: str, labels: Sequence[str], table: Table) -> list[Finding]:
    """Return remarks on the labels of a training split, the counts of the classes first.

    Args:
        column: Where they are.
        labels: One for each row.
        table: The rows, for messages.
    """
    counts = dict(count_labels(labels))
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        positions[label].append(position)
    owners = {label: table.locate_rows(items) for label, items in positions.items()}
    return [
        Finding("classes", f"{len(counts)} classes in '{column}': {counts_text(counts)}."),
        *near_duplicates(column, [[label] for label in labels], table),
        *_edges(column, counts, owners),
        *_missing(column, counts, owners),
        *_separator_remarks(column, labels),
        *_numbers(column, counts),
        *_rare(column, counts, owners),
    ]


def counts_text(counts: Mapping[str, int]) -> str:
    """Return labels with their counts as text: "'billing' 120, 'network' 60"."""
    shown = [f"'{label}' {count:,}" for label, count in list(counts.items())[:_LISTED]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")


def plain_label(label: str) -> str:
    """Return a label without differences that people overlook: case, spaces, width, composition, alphabet.

    Nor has it characters that nobody sees, such as spaces of no width and marks of direction.
    """
    seen_letters = "".join(letter for letter in label if not _is_invisible(letter))
    return " ".join(unicodedata.normalize("NFKC", seen_letters).translate(_LOOK_ALIKES).casefold().split())


def _is_invisible(letter: str) -> bool:
    return unicodedata.category(letter) == "Cf" or letter in _VARIATIONS


def near_duplicates(column: str, rows: Sequence[Sequence[str]], table: Table) -> Iterator[Finding]:
    """Yield findings on labels that differ in case, spaces or one letter, or are two words for true or false.

    Args:
        column: Where they are.
        rows: The labels of each row.
        table: The rows, for messages.
    """
    counts = dict(count_labels(label for labels in rows for label in labels))
    positions: defaultdict[str, dict[int, None]] = defaultdict(dict)
    for position, labels in enumerate(rows):
        for label in labels:
            positions[label][position] = None
    are_truths = all(plain_label(label) in _TRUTHS for label in counts)
    groups: defaultdict[str | bool, list[str]] = defaultdict(list)
    for label in counts:
        plain = plain_label(label)
        groups[_TRUTHS[plain] if are_truths else plain].append(label)
    alike = [labels for labels in groups.values() if len(labels) > 1]
    typos = [[label, other] for label, other in _typos(counts, [labels[0] for labels in groups.values()])]
    for labels in (*alike, *typos)[:_LISTED_GROUPS]:
        rarest = labels[-1]
        owner = table.locate_rows(list(positions[rarest]))
        quoted = ", ".join(f"'{label}' ({counts[label]:,})" for label in labels)
        yield Finding(
            "near_duplicate_labels",
            f"the labels {quoted} of '{column}' are almost the same and count as {len(labels)} classes "
            f"('{rarest}' in {owner}){_foreign_letters(labels)}; write them alike if one is meant.",
        )


def _quote_letter(letter: str) -> str:
    return ascii(letter) if _is_invisible(letter) else f"'{letter}'"


def _edges(column: str, counts: Mapping[str, int], owners: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding on labels that begin or end with a space, which labels of other files may lack."""
    edged_labels = [label for label in counts if label != label.strip()]
    if edged_labels:
        label = edged_labels[0]
        yield Finding(
            "label_spaces",
            f"{len(edged_labels)} of {len(counts)} labels of '{column}' begin or end with a space, such as "
            f"'{label}' ({owners[label]}), which is part of their names; remove it, or rows without it have "
            "other labels.",
        )


def _foreign_letters(labels: Sequence[str]) -> str:
    """Return the letters of another alphabet, or unseen ones, by which labels that look alike differ."""
    letters = [
        f"{_quote_letter(letter)} of '{label}' is {unicodedata.name(letter, 'unnamed').lower()}"
        for label in labels
        for letter in dict.fromkeys(label)
        if ord(letter) in _LOOK_ALIKES or _is_invisible(letter)
    ]
    is_mixed = letters and (
        any(label.isascii() for label in labels) or any(map(_is_invisible, "".join(labels)))
    )
    return f": {', '.join(letters[:_LISTED_GROUPS])}" if is_mixed else ""


def _typos(counts: Mapping[str, int], labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield common labels with a rare one that differs in one letter."""
    total = sum(counts.values())
    rare = [label for label in labels if counts[label] <= max(_FEW_ROWS, _RARE * total)]
    for label in rare:
        for other in labels:
            is_long = min(len(label), len(other)) >= _LONG_ENOUGH
            is_rarer = counts[label] * _FEW_ROWS <= counts[other]
            if is_long and is_rarer and is_one_edit(plain_label(label), plain_label(other)):
                yield other, label


def is_one_edit(first: str, second: str) -> bool:
    """Return whether two texts differ by one letter, or by two neighbours that changed places."""
    if len(first) > len(second):
        first, second = second, first
    if first == second or len(second) - len(first) > 1 or any(map(str.isdigit, first + second)):
        return False
    start = next((index for index, letter in enumerate(first) if letter != second[index]), len(first))
    if len(second) > len(first):
        return first[start:] == second[start + 1 :]
    is_swap = first[start : start + 2] == second[start : start + 2][::-1]
    return first[start + 1 :] == second[start + 1 :] or (
        is_swap and first[start + 2 :] == second[start + 2 :]
    )


def _missing(column: str, counts: Mapping[str, int], owners: Mapping[str, str]) -> Iterator[Finding]:
    for label, count in counts.items():
        if is_missing(label, MISSING_NUMBERS):
            yield Finding(
                "missing_labels",
                f"'{label}' in '{column}' counts as a class ({count:,} times: {owners[label]}); "
                "remove these rows if it stands for a missing label"
                + (", or give --drop-missing." if is_missing(label) else "."),
            )


def find_separator(labels: Sequence[str]) -> str | None:
    """Return the separator of several labels in each text; None if the texts are labels as a whole.

    With a separator the texts fall into fewer different parts than there are different texts, since the parts
    come back in other combinations.
    """
    different = set(labels)
    for separator in SEPARATORS:
        if not any(separator in label for label in different):
            continue
        parts = Counter(part for label in different for part in split_labels(label, separator))
        if len(parts) < len(different) and all(part for part in parts):
            return separator
    return None


def split_labels(text: str, separator: str) -> list[str]:
    """Return the labels in a text, each once; none of an empty text."""
    parts = (part.strip() for part in text.split(separator))
    return list(dict.fromkeys(part for part in parts if part))


def _separator_remarks(column: str, labels: Sequence[str]) -> Iterator[Finding]:
    if (separator := find_separator(labels)) is not None:
        example = next(label for label in labels if separator in label)
        yield Finding(
            "separated_labels",
            f"labels of '{column}' such as '{example}' look like several labels with '{separator}' between "
            "them, and each combination counts as a class; learn them one by one with --kind multi_label.",
        )


def _numbers(column: str, counts: Mapping[str, int]) -> Iterator[Finding]:
    if len(counts) > 2 and all(map(is_number_text, counts)):  # noqa: PLR2004 (0 and 1 are seldom measured)
        yield Finding(
            "numbers_as_classes",
            f"the classes of '{column}' are numbers, whose order is not learned; "
            "give --kind regression if they are measurements.",
        )


def _rare(column: str, counts: Mapping[str, int], owners: Mapping[str, str]) -> Iterator[Finding]:
    total = sum(counts.values())
    common, most = next(iter(counts.items()))
    if most >= _MAJORITY * total:
        yield Finding(
            IMBALANCED,
            f"{most / total:.1%} of the rows are '{common}': always saying so is as accurate; "
            "look at --metric macro_f1, and weigh the classes with --class-weights balanced.",
        )
    single = [label for label, count in counts.items() if count == 1]
    if single:
        shown = ", ".join(f"'{label}' ({owners[label]})" for label in single[:_LISTED_GROUPS])
        rest = len(single) - _LISTED_GROUPS
        more = f" and {rest} more" if rest > 0 else ""
        yield Finding(
            "single_row_classes",
            f"{len(single)} of the classes of '{column}' have one row: {shown}{more}; "
            "nothing can be measured on them.",
        )
