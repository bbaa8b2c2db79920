"""What is public is documented; what changed is written down; nothing knows the machine it was written on."""

import gzip
import re

import pytest

import rankfold
from tests.architecture.sources import PYTHON_FILES, ROOT, name_of

PUBLIC_NAMES = sorted(name for name in rankfold.__all__ if not name.startswith("_"))
MACHINE_PATH = re.compile(r"""["'\s(=:]/(home|root|work|workspace|Users|mnt|opt)/""")


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name_is_in_the_reference(name):
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    assert re.search(rf"^::: rankfold\.([a-z_.]+\.)?{name}$", pages, re.MULTILINE), (
        "add it to docs/reference/."
    )


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name_exists(name):
    assert getattr(rankfold, name) is not None


def test_changelog_says_what_is_in_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.split(r"^## ", text, flags=re.MULTILINE)[1]
    assert newest.startswith(("[Unreleased]", f"[{rankfold.__version__}]"))
    assert re.search(r"^- ", newest, re.MULTILINE), "the newest section of CHANGELOG.md is empty."


def test_files_name_no_place_on_a_machine():
    naming = [name_of(path) for path in PYTHON_FILES if MACHINE_PATH.search(path.read_text(encoding="utf-8"))]
    assert not naming


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "records").glob("*/*")), ids=name_of)
def test_records_name_no_place_on_a_machine(path):
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert not MACHINE_PATH.search(content.decode("utf-8"))
