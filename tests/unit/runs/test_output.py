"""A run's folder: what a failed run left goes, and what somebody else put there stays."""

import os

import pytest

from rankfold.errors import OutputExistsError
from rankfold.runs.output import check_output, clear_failure, output_folder
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


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_every_file_of_a_run_has_the_mode_of_the_umask(tmp_path):
    with output_folder(tmp_path / "run", scratch=tmp_path, overwrite=False) as work:
        (work / "curve.csv").write_text("")
        (work / "adapter_model.safetensors").touch(mode=0o600)
        expected = (work / "curve.csv").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "run").iterdir()} == {expected}
