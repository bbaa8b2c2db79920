"""Regular expressions from configurations, run under a time limit before anything waits for them.

A few letters can take longer than the age of the universe to match, such as `(a+)+b` on many a. Python's
engine cannot be interrupted, and PEFT matches with it too; so expressions of that kind are first tried in a
process that can be ended.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection, Mapping

from rankfold.errors import SpecError
from rankfold.limits import MATCH_SECONDS, MOST_LETTERS, MOST_NAMES

# Repeats of something that has repeats or alternatives itself, and many repeats in a row.
_REPEATED_GROUP = re.compile(r"\)[*+{]|\)\?[*+?]")
_REPEAT = re.compile(r"[*+]|\{\d*,\}")
_FEW_REPEATS = 4

_PROGRAM = """
import json, re, sys
expressions, names = json.load(sys.stdin)
for expression in expressions:
    match = re.compile(expression).match
    for name in names:
        match(name)
    print(flush=True)
"""


def check_expression(option: str, pattern: str) -> None:
    """Check that a text is a regular expression.

    Raises:
        SpecError: If it is none, or too long.
    """
    if len(pattern) > MOST_LETTERS:
        raise SpecError(
            f"{option} has an expression of {len(pattern)} letters, and {MOST_LETTERS} are allowed; give "
            "names as a list."
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise SpecError(
            f"{option} has '{_shorten(pattern)}', which is no regular expression ({error}); correct it."
        ) from error


def check_names(option: str, names: Collection[str]) -> None:
    """Check that a list of names has a length that can be compared with a model.

    Raises:
        SpecError: If it is too long.
    """
    if len(names) > MOST_NAMES:
        raise SpecError(f"{option} has {len(names)} names, and {MOST_NAMES} are allowed; give an expression.")


def check_time(expressions: Mapping[str, tuple[str, str]], names: Collection[str]) -> None:
    """Check that expressions are matched with names in reasonable time.

    Args:
        expressions: By the expression as it is matched from the beginning of a name, the option and the
            pattern that it comes from.
        names: The names.

    Raises:
        SpecError: If one takes longer than `MATCH_SECONDS`.
    """
    doubtful = [expression for expression in expressions if _is_doubtful(expression)]
    if not doubtful or not names or not sys.executable:
        return
    text = json.dumps([doubtful, list(names)])
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    try:
        subprocess.run(  # noqa: S603 (our own program; the expressions are its data)
            command, input=text.encode(), capture_output=True, timeout=MATCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        finished = (error.stdout or b"").count(b"\n")
        option, pattern = expressions[doubtful[min(finished, len(doubtful) - 1)]]
        raise SpecError(
            f"{option} has '{_shorten(pattern)}', which takes more than {MATCH_SECONDS} seconds to match; "
            "write it without repeats inside of repeats, or give names as a list."
        ) from error


def _is_doubtful(expression: str) -> bool:
    return _REPEATED_GROUP.search(expression) is not None or len(_REPEAT.findall(expression)) > _FEW_REPEATS


def _shorten(pattern: str) -> str:
    most = 80
    return pattern if len(pattern) <= most else f"{pattern[:most]}..."
