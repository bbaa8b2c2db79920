"""Ordinary paths as destinations work, or are refused by one clear sentence."""

import os

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.stored import make_adapter

FILES = ["adapter_config.json", "adapter_model.safetensors"]


def run(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert "unexpected" not in result.output
    return result


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An adapter `A` in its two other forms, and the empty folder in which the shell is."""
    make_adapter().write(tmp_path / "A")
    run("pack", tmp_path / "A", tmp_path / "a.rk")
    run("store", "put", tmp_path / "s.db", "x", tmp_path / "A")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path


WRITERS = {
    "unpack": ("unpack", "../a.rk"),
    "store get": ("store", "get", "../s.db", "x"),
}


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_folder_in_which_the_shell_is_and_a_link_are_filled(place, words):
    run(*words, ".")
    assert sorted(os.listdir()) == sorted(os.listdir("../empty")) == FILES
    assert "exists" in run(*words, ".", code=2).stderr
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    run(*words, "../link")
    assert sorted(os.listdir(place / "real")) == FILES
    run(*words, "new/../other")
    assert sorted(os.listdir("other")) == FILES


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("pack", "../A", "new/x.rk"), 0, "packed: "),
        (("pack", "../A", "../empty", "--overwrite"), 2, "is a folder; name a file in it"),
        (("pack", "../A", "."), 2, "is a folder; name a file in it"),
        (("size", "/dev/null"), 2, "is neither a file nor a folder; "),
        (("store", "put", "../s.db", "y", "../A", "-t", "k=\udcff"), 2, r"'\udcff' is no valid text; "),
        (("store", "list", "../s.db", "-t", "k=\udcff"), 2, "unknown tag 'k'"),
        (("store", "list", "../s.db", "--base", "\udcff"), 2, r"'\udcff' is no valid text; "),
        (("store", "get", "../s.db", "\udcff", "x"), 2, r"'\udcff' is no valid text; "),
        (("store", "delete", "../s.db", "\udcff"), 2, r"'\udcff' is no valid text; "),
        (("store", "export", "../s.db", ".", "--overwrite"), 2, "is a folder; name a file in it"),
    ],
    ids=lambda value: " ".join(value).encode(errors="replace").decode() if isinstance(value, tuple) else "",
)
def test_each_place_is_written_or_refused_by_one_sentence(place, words, code, said):
    result = run(*words, code=code)
    assert said in result.stderr
    assert {path.name for path in place.iterdir()} - {"s.db-wal", "s.db-shm"} == {
        "A",
        "a.rk",
        "empty",
        "s.db",
    }


def test_written_file_is_not_among_those_that_are_not_carried(place, monkeypatch):
    monkeypatch.chdir(place)
    words = ("pack", "A", "A/p.rk")
    assert "not carried" not in run(*words).stderr
    (place / "A" / "run.txt").touch()
    assert "not carried: run.txt\n" in run(*words, "--overwrite").stderr
