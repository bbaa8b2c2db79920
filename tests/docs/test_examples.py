"""Every Python example in the pages and in the docstrings is executed and does what it says."""

import runpy

import pytest
from sybil import Document, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from tests.architecture.sources import LIBRARY_FILES, ROOT, name_of

PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```python" in page.read_text("utf-8")
]
DOCSTRINGS = [path for path in LIBRARY_FILES if ">>> " in path.read_text("utf-8")]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(document: Document) -> int:
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def test_readme_has_an_example():
    assert ROOT / "README.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sybil = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path=str(ROOT))
    assert run(sybil.parse(page)) > 0


@pytest.mark.parametrize("path", DOCSTRINGS, ids=name_of)
def test_docstring_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sybil = Sybil(parsers=[DocTestParser()], path=str(ROOT), document_types={".py": PythonDocStringDocument})
    assert run(sybil.parse(path)) > 0


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_example_script_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")


def test_wrong_example_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 + 1 == 3\n```\n")
    sybil = Sybil(parsers=[PythonCodeBlockParser()], path=str(tmp_path))
    with pytest.raises(AssertionError):
        run(sybil.parse(page))
