"""`rankfold serve` says before it loads anything what is wrong with its options, its keys and its address."""

import json
import sys

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from rankfold.errors import SpecError
from rankfold.serve.http.keys import ApiKey, Keys, read_keys
from rankfold.serve.http.run import listen

SECRET = "a-key-of-twenty-letters"


def refusal(*words):
    done = CliRunner().invoke(cli, ["serve", *map(str, words)])
    assert done.exit_code == 2, done.output
    return done.stderr


def test_wrong_options_are_refused_by_name(tmp_path):
    model = ("--model", "minilm")
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for words, message in [
            ((), "no model is named"),
            (("--demo", "--model", "smollm2"), "--demo serves minilm"),
            ((*model, "--host", "0.0.0.0"), "there are no keys"),
            ((*model, "--adapter", "news"), "NAME=PATH"),
            ((*model, "--adapter", ""), "NAME=PATH"),
            ((*model, "--adapter", " =a"), "NAME=PATH"),
            ((*model, "--adapter", "news= "), "NAME=PATH"),
            ((*model, "--adapter", "n*=a"), "cannot be a name"),
            ((*model, "--name", ""), "cannot be a name"),
            ((*model, "--adapter", "news=a", "--adapter", "news=b"), "'news' twice"),
            (("--demo", "--adapter", "news=b"), "'news' twice"),
            ((*model, "--keys", tmp_path / "none.json"), "cannot read the keys"),
            ((*model, "--port", port), f"cannot listen at 127.0.0.1:{port}"),
            ((*model, "--slots", 1), "slots"),
        ]:
            assert message in refusal(*words)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'rankfold[serve]'" in refusal("--model", "minilm")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("nothing", "holds no keys"),
        ([{"name": "a", "key": "short"}], "at least 16"),
        ([{"name": "a", "key": SECRET, "adapter": ["b"]}], "adapter"),
        ([{"name": "a", "key": SECRET, "adapters": ["*b"]}], "adapters"),
        ([{"name": "a", "key": SECRET, "adapters": ["b", ""]}], "adapters"),
        ([{"name": "a", "key": SECRET, "adapters": [" "]}], "adapters"),
        ([{"name": "a", "key": SECRET, "adapters": []}], "adapters"),
        ([{"name": " ", "key": SECRET}], "name"),
        ([{"name": "a", "key": SECRET}, {"name": "b", "key": SECRET}], "the same key"),
    ],
)
def test_files_that_hold_no_keys_are_refused_without_showing_one(tmp_path, keys, message):
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with pytest.raises(SpecError, match=message) as error:
        read_keys(tmp_path / "keys.json", {})
    assert SECRET not in str(error.value)


def test_keys_are_found_whole_only(tmp_path):
    (tmp_path / "keys.json").write_text(json.dumps([{"name": "a", "key": SECRET, "adapters": ["x", "y/*"]}]))
    keys = read_keys(tmp_path / "keys.json", {"RANKFOLD_ADMIN_KEY": f"{SECRET}-admin"})
    assert not keys.is_open
    key = keys.find(SECRET)
    assert [key.may_use(name) for name in ("x", "y/1", "y", "xx", "z", "y/")] == [
        True,
        True,
        *[False] * 3,
        True,
    ]
    for wrong in ("", SECRET[:-1], SECRET + "a", SECRET.upper(), "\udcff", "é"):
        assert keys.find(wrong) is None
    assert keys.find(f"{SECRET}-admin").is_admin
    assert Keys([ApiKey(key=SECRET, name="a", is_admin=True)]).is_open
