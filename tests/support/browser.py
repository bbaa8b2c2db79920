"""A headless Chromium, or the reason why there is none."""

import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser():
    """A browser for the tests of one file."""
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        found = next(filter(None, map(shutil.which, _NAMES)), None) or (str(own) if own.is_file() else None)
        if found is None:
            pytest.skip(
                "there is no Chromium; install the package chromium, or run `playwright install chromium`"
            )
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
