"""A logger is named after the package that logs, so that one package can be made quiet or talkative."""

import re

import pytest

from tests.architecture.sources import PACKAGE

LOGGER = re.compile(r'getLogger\("(rankfold\.[\w.]+)"\)')
MODULES = [path for path in PACKAGE.rglob("*.py") if LOGGER.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_logger_has_the_name_of_its_package(module):
    name = f"rankfold.{module.relative_to(PACKAGE).parts[0]}"
    assert set(LOGGER.findall(module.read_text("utf-8"))) == {name}
