"""Generated pages are up to date; the site builds without a warning and loads nothing from elsewhere."""

import re
import subprocess
import sys
from io import StringIO

import pytest
from cogapp import Cog

from tests.architecture.sources import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
GENERATED = sorted(str(page.relative_to(ROOT)) for page in PAGES if "[[[cog" in page.read_text())
LOADED_FROM_ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe)[^>]*\ssrc="https?://|<link[^>]*rel="stylesheet"[^>]*https?://"""
)


def test_there_are_generated_pages():
    assert {"README.md", "docs/methods.md", "docs/experiments.md"} <= set(GENERATED)


@pytest.mark.parametrize("page", GENERATED)
def test_generated_page_is_up_to_date(page):
    said = StringIO()
    cog = Cog()
    cog.set_output(stdout=said, stderr=said)
    failed = cog.main(["cog", "--check", "--diff", "-I", str(ROOT), str(ROOT / page)])
    assert not failed, f"{said.getvalue()}run `make docs` and look at the change."


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="building the site needs the extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder


def test_site_builds_strictly(site):
    assert (site / "index.html").is_file()


def test_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert pages
    for page in pages:
        assert not LOADED_FROM_ELSEWHERE.search(page.read_text(encoding="utf-8")), page
