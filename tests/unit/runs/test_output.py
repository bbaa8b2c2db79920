"""A run's folder: what a failed run left goes, and what somebody else put there stays."""

import pytest

from rankfold.errors import OutputExistsError
from rankfold.runs.output import check_output, clear_failure
from tests.support.records import fail, make_record


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_failure_is_cleared_with_its_folder(folder):
    fail(make_record()).write(folder)
    clear_failure(folder)
    assert not folder.exists()


def test_what_is_beside_a_failure_stays_and_is_said(folder):
    fail(make_record()).write(folder)
    (folder / "notes.txt").write_text("mine")
    clear_failure(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(OutputExistsError, match="exists; choose another folder"):
        check_output(folder, overwrite=False)


def test_run_that_ended_well_is_no_failure(folder):
    make_record().write(folder)
    clear_failure(folder)
    assert [path.name for path in folder.iterdir()] == ["run.json"]
