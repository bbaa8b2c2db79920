"""A method is one file in presets/ and one in tests/specs/; nothing else knows its name."""

import ast

import pytest

from rankfold.presets import discover
from tests.architecture.sources import LIBRARY_FILES, PACKAGE, ROOT, docstrings_in, name_of, parse

OUTSIDE_PRESETS = [path for path in LIBRARY_FILES if not path.is_relative_to(PACKAGE / "presets")]


def strings_in(path) -> set[str]:
    tree = parse(path)
    documentation = docstrings_in(tree)
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation
    }


def test_every_preset_has_its_spec_test_and_no_more():
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "specs").glob("test_*.py")}
    assert tested == set(discover())


@pytest.mark.parametrize("path", OUTSIDE_PRESETS, ids=name_of)
def test_preset_names_stay_in_presets(path):
    assert not strings_in(path) & set(discover()), "ask the preset's spec what it is, not what it is called."


def test_preset_is_named_after_its_file():
    files = {path.stem for path in (PACKAGE / "presets").glob("*.py") if not path.stem.startswith("_")}
    assert set(discover()) == files
