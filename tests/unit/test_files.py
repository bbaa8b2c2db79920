"""A file or folder is there with all its content or not at all, wherever it is put."""

import os

import pytest

from rankfold.errors import OutputExistsError, SpecError
from rankfold.files import check_free_file, whole_file, whole_folder, write_whole


def fine():
    """Allow it."""


def fill(folder, *, check=fine):
    with whole_folder(folder, check=check, last="a") as work:
        for name in ("a", "b"):
            (work / name).write_text(name)
        (work / "more").mkdir()
        (work / "more" / "c").write_text("c")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


WHOLE = ["a", "b", "more", "more/c"]


def test_new_folder_is_made_with_its_parents(tmp_path):
    fill(tmp_path / "x" / "y")
    assert names(tmp_path) == ["x", "x/y", *(f"x/y/{name}" for name in WHOLE)]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these modes")
def test_files_can_be_read_by_whom_the_folder_can(tmp_path):
    with whole_folder(tmp_path / "x", check=fine, last="a") as work:
        (work / "a").touch(mode=0o600)
    expected = (tmp_path / "x").stat().st_mode & 0o666
    assert (tmp_path / "x" / "a").stat().st_mode & 0o777 == expected


def test_empty_folder_is_filled_and_stays_the_one_it_is(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "empty").stat().st_ino
    monkeypatch.chdir(tmp_path / "empty")
    fill(tmp_path.__class__("."))
    assert names(tmp_path / "empty") == WHOLE == sorted([*os.listdir(), "more/c"])
    assert (tmp_path / "empty").stat().st_ino == before
    assert names(tmp_path) == ["empty", *(f"empty/{name}" for name in WHOLE)]


@pytest.mark.parametrize("is_there", [True, False])
def test_link_to_a_folder_leads_to_it(tmp_path, is_there):
    if is_there:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == WHOLE


@pytest.mark.parametrize("old", [None, "empty", "full"])
def test_failure_leaves_what_was_there(tmp_path, old):
    if old:
        (tmp_path / "out").mkdir()
    if old == "full":
        (tmp_path / "out" / "mine").write_text("mine")
    before = names(tmp_path)

    def refuse():
        raise OutputExistsError

    with pytest.raises(OutputExistsError):
        fill(tmp_path / "out", check=refuse)
    assert names(tmp_path) == before


def test_empty_folder_is_empty_again_when_a_move_fails(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    move = os.rename

    def fail_at_last(source, target):
        if str(source).endswith("a"):
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr("shutil.move", fail_at_last)
    with pytest.raises(SpecError, match="No space left on device"):
        fill(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_full_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    fill(tmp_path / "out")
    assert names(tmp_path) == ["out", *(f"out/{name}" for name in WHOLE)]


def test_file_that_fails_leaves_the_earlier_one_and_no_draft(tmp_path):
    write_whole(tmp_path / "file", b"old")

    def refuse():
        raise OutputExistsError

    with pytest.raises(OutputExistsError), whole_file(tmp_path / "file", check=refuse) as file:
        file.write(b"new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_is_no_place_for_a_file(tmp_path, monkeypatch, overwrite):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path.__class__(".")):
        with pytest.raises(OutputExistsError, match="is a folder; name a file in it"):
            check_free_file(path, overwrite=overwrite)
