"""A file is one idea, a function does one thing; an exception says why."""

import ast
from pathlib import Path

from tests.architecture.sources import PYTHON_FILES, Function, functions_in, name_of, parse

FILE_LINES = 300
FUNCTION_LINES = 50

# What may be longer, how long, and the reason a reader accepts.
LONGER_FILES: dict[str, tuple[int, str]] = {
    "tests/unit/bench/runs/test_unfinished.py": (360, "a folder's life, from its lock to its end"),
}
LONGER_FUNCTIONS: dict[str, tuple[int, str]] = {
    "tests/support/records.py:make_record": (80, "one run record, written out field by field"),
}


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def function_lengths(path: Path, file: str) -> dict[str, int]:
    """Return the lines of each function; its documentation is free."""
    return {
        f"{file}:{name}": node.end_lineno - node.lineno + 1 - documentation_lines(node)
        for name, node in functions_in(parse(path))
    }


def documentation_lines(node: Function) -> int:
    docstring = ast.get_docstring(node, clean=False)
    return len(docstring.splitlines()) if docstring else 0


FILE_LENGTHS = {name_of(path): lines_of(path) for path in PYTHON_FILES}
FUNCTION_LENGTHS = {
    name: lines for path in PYTHON_FILES for name, lines in function_lengths(path, name_of(path)).items()
}


def test_files_are_short():
    too_long = {
        name: lines
        for name, lines in FILE_LENGTHS.items()
        if lines > LONGER_FILES.get(name, (FILE_LINES, ""))[0]
    }
    assert not too_long, "split these by idea, or state a reason in LONGER_FILES."


def test_functions_are_short():
    too_long = {
        name: lines
        for name, lines in FUNCTION_LENGTHS.items()
        if lines > LONGER_FUNCTIONS.get(name, (FUNCTION_LINES, ""))[0]
    }
    assert not too_long, "split these by what they do, or state a reason in LONGER_FUNCTIONS."


def test_exceptions_are_needed_and_have_a_reason():
    for limit, longer, lengths in (
        (FILE_LINES, LONGER_FILES, FILE_LENGTHS),
        (FUNCTION_LINES, LONGER_FUNCTIONS, FUNCTION_LENGTHS),
    ):
        for name, (_, reason) in longer.items():
            assert lengths[name] > limit, "the exception is no longer needed."
            assert reason


def test_length_of_a_function_leaves_out_its_documentation(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('def one():\n    """Two\n    lines."""\n    return 1\n')
    assert function_lengths(path, "module.py") == {"module.py:one": 2}
