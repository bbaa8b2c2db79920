"""Every Python example in the pages and in the docstrings is executed and does what it says."""

import os
import re
import runpy
import socket
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from sybil import Document, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from tests.architecture.sources import LIBRARY_FILES, ROOT, name_of
from tests.docs.test_tutorials import PAGES as TUTORIALS
from tests.support.killing import run_script, start

PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```python" in page.read_text("utf-8") and page not in TUTORIALS  # which need their commands
]
DOCSTRINGS = [path for path in LIBRARY_FILES if ">>> " in path.read_text("utf-8")]
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.name != "tiny.py"]
MANY_PROCESSES = [path for path in EXAMPLES if path.stem in ("with_accelerate", "with_fsdp")]


def skip_without_packages(path):
    """Skip an example whose docstring names a package that is not installed."""
    for package in re.findall(r"pip install ([\w -]+)`", path.read_text("utf-8")):
        missing = [name for name in package.split() if find_spec(name.replace("-", "_")) is None]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")


def run(document: Document) -> int:
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def test_readme_has_an_example():
    assert ROOT / "README.md" in PAGES


@pytest.mark.usefixtures("shallow_smollm2")
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
@pytest.mark.usefixtures("unchecked_shapes")  # which torch.compile cannot trace
@pytest.mark.filterwarnings("ignore")  # those of the libraries that the examples show
def test_example_script_runs(path, tmp_path, monkeypatch):
    skip_without_packages(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(path.parent))
    # The graphs are ours; a compiler of C++ would make code of them for minutes on a machine that is busy.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    before = dict(os.environ)
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:  # an example may set variables, which other tests must not see
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("path", MANY_PROCESSES, ids=name_of)
def test_example_script_runs_on_two_processes(path, tmp_path):
    """With the environment that torchrun gives, whose processes would import everything anew."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    outputs = [tmp_path / f"stdout-{rank}" for rank in range(2)]
    children = [
        start(run_script, path, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, output)
        for rank, output in enumerate(outputs)
    ]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    losses = re.findall(r"loss ([\d.]+) -> ([\d.]+)", outputs[0].read_text("utf-8"))
    assert losses
    assert all(float(last) < float(first) for first, last in losses)


def test_wrong_example_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 + 1 == 3\n```\n")
    sybil = Sybil(parsers=[PythonCodeBlockParser()], path=str(tmp_path))
    with pytest.raises(AssertionError):
        run(sybil.parse(page))
