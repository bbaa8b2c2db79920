"""The architecture page names functions that exist, and its diagram shows the imports that the code has."""

import re
from importlib import import_module
from pkgutil import resolve_name

import pytest

from docs.diagram import DIAGRAM, diagram, package_imports
from tests.architecture.sources import PACKAGE, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FUNCTIONS = sorted(set(re.findall(r"^ *(rankfold(?:\.\w+)+)", PAGE, re.MULTILINE)))
FILES = sorted(set(re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", PAGE)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_on_the_page_exists(name):
    assert callable(resolve_name(name))


@pytest.mark.parametrize("path", FILES)
def test_file_on_the_page_exists(path):
    assert (PACKAGE / path).exists() or (ROOT / path).exists()


def test_page_has_functions_and_files():
    assert len(FUNCTIONS) > 15
    assert len(FILES) > 5


def test_diagram_is_that_of_the_imports():
    assert DIAGRAM.read_text("utf-8") == diagram(), "run `make docs`."
    assert ("runs", "train") in package_imports()


def test_a_package_that_is_not_there_is_not_resolved():
    with pytest.raises(ImportError):
        import_module("rankfold.nowhere")
