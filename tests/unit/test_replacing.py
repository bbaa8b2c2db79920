"""Replacing a folder, stopped at every line of it: the earlier content or the new one is there."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from rankfold import files
from rankfold.files import check_writable, exchange, remove_drafts, whole_folder, write_whole
from rankfold.runs import output
from rankfold.runs.output import folder_beside, output_folder, restore_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed process is a fork")

WATCHED = (files.__file__, output.__file__, shutil.__file__)
OLD, NEW = "old content", "new content"


class Stop:
    """A trace function that does something at the n-th line of the watched modules."""

    def __init__(self, line, action):
        self.left, self.action = line, action

    def __call__(self, frame, event, _argument):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.action()
        return self


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def export_over(place):
    with whole_folder(place, check=lambda: None, last="record") as work:
        (work / "record").write_text(NEW)


def run_over(place):
    scratch = folder_beside(place)
    scratch.mkdir(exist_ok=True)
    restore_run(place, scratch)
    with output_folder(place, scratch=scratch, overwrite=True) as work:
        (work / "run.json").write_text(NEW)
        (work / "record").write_text(NEW)


def place_of(folder):
    """Make a folder with an earlier content."""
    place = folder / "place"
    place.mkdir()
    (place / "record").write_text(OLD)
    (place / "adapter_config.json").write_text("{}")
    return place


def content(place):
    return (place / "record").read_text() if (place / "record").exists() else None


def ways_to_stop(write, action, folder):
    """Yield the place after a stop at every line, until nothing was left to stop."""
    for line in range(1, 2000):
        (folder / str(line)).mkdir()
        place = place_of(folder / str(line))
        stop = Stop(line, action)
        if action is kill:
            child = os.fork()
            if not child:
                sys.settrace(stop)
                write(place)
                os._exit(0)
            is_done = os.waitpid(child, 0)[1] == 0
        else:
            previous = sys.gettrace()
            sys.settrace(stop)
            try:
                with suppress(KeyboardInterrupt, Exception):  # shutil makes an error of it
                    write(place)
            finally:
                sys.settrace(previous)
            is_done = stop.left > 0
        yield place
        if is_done:
            assert content(place) == NEW
            return
    pytest.fail("it never came to its end")


def replace_by(way, patch):
    """Let folders be exchanged or moved aside, and no file wait for the disk."""
    patch.setattr(files, "flush", lambda _: None)  # no power is cut here
    if way == "moved aside":
        patch.setattr(files, "exchange", lambda *_: False)


def check_stops(write, action, way, folder):
    """Stop a function at every line."""
    count = 0
    for place in ways_to_stop(write, action, folder):
        count += 1
        if way == "exchanged" or action is interrupt:
            assert content(place) in (OLD, NEW)
        # The next start puts back what a kill left aside, and leaves nothing beside the folder.
        write(place)
        assert content(place) == NEW
        shutil.rmtree(folder_beside(place), ignore_errors=True)
        assert [path.name for path in place.parent.iterdir()] == ["place"]
    assert count > 40


@pytest.mark.parametrize("write", [export_over, run_over])
@pytest.mark.parametrize("action", [interrupt, kill])
@pytest.mark.parametrize("way", ["exchanged", "moved aside"])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stopped_at_any_line_one_of_both_is_there(write, action, way, tmp_path, monkeypatch):
    if way == "exchanged" and not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges two names in one step")
    if action is interrupt:
        replace_by(way, monkeypatch)
        check_stops(write, action, way, tmp_path)
        return
    # A process without torch forks a hundred times faster than this one.
    command = [sys.executable, "-m", "tests.unit.test_replacing", write.__name__, way, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_exchange_is_one_step_for_files_and_folders(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges two names in one step")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    assert exchange(tmp_path / "folder", tmp_path / "file")
    assert (tmp_path / "file").is_dir()
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "file", tmp_path / "absent")


def test_folder_of_a_living_process_is_left_alone(tmp_path):
    place = place_of(tmp_path)
    with whole_folder(place, check=lambda: None, last="record") as work:
        (work / "record").write_text("first")
        export_over(place)
        assert work.is_dir()
    assert content(place) == "first"


def test_leftovers_beside_another_target_go_and_what_was_moved_aside_comes_back(tmp_path):
    def scratch(name, *parts):
        for part in parts:
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / "record").write_text(OLD)
        return tmp_path / name

    dead = scratch(".kx.0123456789abcdef", "new"), scratch(".gone.0123456789abcdef", "new", "old")
    strangers = [
        scratch(".kx.0123456789abcdeg", "new"),
        scratch(".other.0123456789abcdef", "new", "more"),
        scratch(".empty.0123456789abcdef", "other"),
    ]
    with whole_folder(tmp_path / "living", check=lambda: None, last="record") as work:
        export_over(tmp_path / "out")
        assert work.is_dir()
    assert not any(folder.exists() for folder in dead)
    assert content(tmp_path / "gone") == OLD
    assert all(folder.exists() for folder in strangers)


def test_unfinished_files_of_killed_processes_go(tmp_path):
    child = os.fork()
    if not child:
        with files.whole_file(tmp_path / "file", check=lambda: None):
            kill()
    os.waitpid(child, 0)
    (draft,) = tmp_path.iterdir()
    with files.whole_file(tmp_path / "file", check=lambda: None):
        living = {path.name for path in tmp_path.iterdir()} - {draft.name}
        remove_drafts(tmp_path / "file")
        assert {path.name for path in tmp_path.iterdir()} == living
    write_whole(tmp_path / ".file.0123", b"")
    remove_drafts(tmp_path / "file")
    assert (tmp_path / ".file.0123").exists()


@pytest.mark.parametrize("link", ["run", "parent"])
@pytest.mark.parametrize("target", ["nothing", "itself"])
def test_link_to_nothing_is_refused(link, target, tmp_path):
    (tmp_path / link).symlink_to(link if target == "itself" else "nothing")
    place = tmp_path / "run" if link == "run" else tmp_path / "parent" / "run"
    with pytest.raises(files.SpecError, match=f"{link}' is a link to something that is not there; remove"):
        check_writable(place)


@pytest.mark.parametrize("fault", ["link", "file"])
def test_run_that_cannot_take_its_place_stays_beside_it_and_is_named(fault, tmp_path):
    scratch = folder_beside(tmp_path / "place")
    scratch.mkdir()

    def write():
        with output_folder(tmp_path / "place", scratch=scratch, overwrite=False) as work:
            (work / "record").write_text(NEW)
            place = tmp_path / "place"
            place.symlink_to("nothing") if fault == "link" else place.write_text("mine")

    with pytest.raises(files.OutputExistsError, match=r"the finished run is in '.*place\.finished', move"):
        write()
    assert content(tmp_path / "place.finished") == NEW


if __name__ == "__main__":
    replace_by(sys.argv[2], pytest.MonkeyPatch())
    check_stops(
        {"export_over": export_over, "run_over": run_over}[sys.argv[1]], kill, sys.argv[2], Path(sys.argv[3])
    )
