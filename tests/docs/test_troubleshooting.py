"""The messages that the troubleshooting page explains are messages of the library."""

import ast
import re

import pytest

from tests.architecture.sources import LIBRARY_FILES, ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
FIRST_CELLS = [
    line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line
]
MESSAGES = sorted({part for cell in FIRST_CELLS for part in re.findall(r"`([^`]+)`", cell)})


def texts(path):
    """Return the strings of a file, with {} for each value in them."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = node.values
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)


@pytest.fixture(scope="module")
def library_text():
    return "\n".join(text for path in LIBRARY_FILES for text in texts(path))


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_one_of_the_library(message, library_text):
    assert message in library_text, f"no error of the library says '{message}'"
