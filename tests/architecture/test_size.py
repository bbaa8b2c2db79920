"""A file is one idea, a function does one thing; an exception says why."""

from pathlib import Path

import pytest

from tests.architecture.sources import PYTHON_FILES, functions_in, name_of, parse

FILE_LINES = 300
FUNCTION_LINES = 50

# What may be longer, how long, and the reason a reader accepts.
LONGER_FILES: dict[str, tuple[int, str]] = {}
LONGER_FUNCTIONS: dict[str, tuple[int, str]] = {}


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def function_lengths(path: Path) -> dict[str, int]:
    return {
        f"{name_of(path)}:{name}": node.end_lineno - node.lineno + 1
        for name, node in functions_in(parse(path))
    }


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_file_is_short(path):
    allowed, _ = LONGER_FILES.get(name_of(path), (FILE_LINES, ""))
    assert lines_of(path) <= allowed, f"{name_of(path)} is longer than {allowed} lines; split it by idea."


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_functions_are_short(path):
    too_long = {
        name: lines
        for name, lines in function_lengths(path).items()
        if lines > LONGER_FUNCTIONS.get(name, (FUNCTION_LINES, ""))[0]
    }
    assert not too_long, "split these by what they do, or state a reason in LONGER_FUNCTIONS."


def test_exceptions_are_needed_and_have_a_reason():
    files = {name_of(path): lines_of(path) for path in PYTHON_FILES}
    functions = {name: lines for path in PYTHON_FILES for name, lines in function_lengths(path).items()}
    for name, (_, reason) in LONGER_FILES.items():
        assert files[name] > FILE_LINES, "the exception is no longer needed."
        assert reason
    for name, (_, reason) in LONGER_FUNCTIONS.items():
        assert functions[name] > FUNCTION_LINES, "the exception is no longer needed."
        assert reason
