"""The tutorials run as they stand: every command and every script of a page, in its order."""

import re
import shlex
import shutil

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.architecture.sources import ROOT, name_of

PAGES = [page for page in sorted((ROOT / "docs" / "tutorials").glob("*.md")) if page.name != "index.md"]
PAGES.append(ROOT / "docs" / "basis.md")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_commands(text):
    """Run the lines of a shell block; each is a command of rankfold."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "rankfold", f"'{line}' is not a command of rankfold"
        done = CliRunner().invoke(cli, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("shallow_smollm2")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tutorial_runs(page, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(page.read_text("utf-8"))
    assert any(kind == "sh" for kind, _ in blocks)
    names = {"__name__": "tutorial"}
    for kind, text in blocks:
        if kind == "sh":
            run_commands(text)
        else:
            exec(compile(text, page.name, "exec"), names)
