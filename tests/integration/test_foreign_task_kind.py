"""A kind of task from another package trains, goes on after a kill, is evaluated, compared and reported."""

import json
import signal
import sys
import time

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from rankfold.errors import SpecError
from rankfold.models.base import resolve_model
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.kinds import KINDS, Learner, find_kind, kind_names
from tests.support.foreign_kind import MODULE, write_package
from tests.support.killing import call, start
from tests.support.tiny_models import BAD, GOOD, review_rows, write_bert, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

STEPS = 60
EVERY = 10


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package, on the path of this process."""
    folder = write_package(tmp_path_factory.mktemp("site"), "my_tags", MODULE, {"tags": "TAGS"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def _tagged(rows):
    words = {"good": GOOD, "bad": BAD, "music": ("music",), "story": ("story",)}
    return [
        {
            "text": row["sentence"],
            "tags": [tag for tag, of in words.items() if set(of) & set(row["sentence"].split())],
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tagged"
    return write_splits(folder, train=_tagged(review_rows(48)), validation=_tagged(review_rows(16, seed=1)))


def _words(model, data, out, *more):
    words = ["train", "--model", model, "--data", data, "--kind", "tags", "--method", "lora", "--out", out]
    words += [
        "--steps",
        STEPS,
        "--batch-size",
        8,
        "--checkpoint-every",
        EVERY,
        "--validate",
        "end",
        "--threads",
        1,
    ]
    return [str(word) for word in (*words, *more)]


def _call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def trained(site, tiny_bert, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    _call(*_words(tiny_bert, data, out, "--learning-rate", 0.02))
    return out


def test_kind_of_another_package_trains_and_is_recorded(trained):
    record = json.loads((trained / "run.json").read_text("utf-8"))
    task = record["task"]
    assert (task["kind"], task["metric"]) == ("tags", "exact_match")
    assert task["label_names"] == ["bad", "good", "music", "story"]
    assert record["metrics"]["exact_match"] > record["baselines"]["majority"]
    assert len(record["predictions"]) == 16
    assert record["predictions"][0]["label"] in [[float(bit) for bit in f"{n:04b}"] for n in range(16)]
    assert record["training"]["max_length"] == 64
    assert record["flops"] > 0


def test_run_that_is_killed_goes_on_to_the_same_adapter(trained, site, tiny_bert, data, tmp_path):
    out = tmp_path / "killed"
    words = _words(tiny_bert, data, out, "--learning-rate", 0.02)
    child = start(call, words, str(site))
    unfinished = out.with_name(f"{out.name}.unfinished")
    while child.is_alive() and not list(unfinished.glob(f"**/checkpoint-{EVERY}*")):
        time.sleep(0.005)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    assert not out.exists()
    _call("train", "--resume", "--out", out)
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (trained / weights).read_bytes()


def test_evaluation_repeats_the_metrics_of_the_run(trained):
    record = json.loads((trained / "run.json").read_text("utf-8"))
    evaluated = json.loads(_call("evaluate", trained, "--json").stdout)
    assert evaluated["metrics"] == record["metrics"]
    assert evaluated["predictions"] == record["predictions"]


def test_methods_are_compared_and_reported(site, tiny_bert, data, tmp_path):
    out = tmp_path / "compared"
    result = _call(
        *("compare", "--model", tiny_bert, "--data", data, "--kind", "tags", "--out", out, "--seeds", 0),
        *("--method", "lora r=2", "--method", "tlora r=2", "--steps", 4, "--batch-size", 8),
    )
    assert "exact match" in result.stdout
    assert "exact match" in (out / "report.md").read_text("utf-8")
    assert "exact match" in _call("report", out).stdout


def test_estimates_know_the_kind(site, tiny_bert):
    counted = json.loads(
        _call("params", "--model", tiny_bert, "--method", "lora", "--kind", "tags", "--json").stdout
    )
    assert counted["trainable"] > 0


def test_predictions_need_no_labels(site, tiny_bert, data):
    loaded = find_kind("tags").load(resolve_model(str(tiny_bert)), ("a", "b"))
    examples = load_task(TaskRequest(data=str(data), kind="tags"), is_causal=False).examples.splits[
        "validation"
    ]
    predictions = find_kind("tags").predict(Learner(loaded.model, loaded.processor, 32), examples[:3])
    assert [len(prediction) for prediction in predictions] == [2, 2, 2]


def test_kind_that_is_unknown_has_a_suggestion(site):
    assert kind_names() == (*KINDS, "tags")
    with pytest.raises(SpecError, match=r"unknown kind 'tag'\. Did you mean 'tags'"):
        find_kind("tag")


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        (
            {"one": {"shared": "KIND"}, "two": {"shared": "KIND"}},
            "the packages 'one' and 'two' both have a task kind",
        ),
        (
            {"one": {"regression": "KIND"}},
            "the packages 'one' and 'rankfold' both have a task kind 'regression'",
        ),
        ({"one": {"shared": "MISSING"}}, r"'shared' of the package 'one' does not load \(AttributeError"),
        (
            {"one": {"shared": "NUMBER"}},
            "'one:NUMBER' of the package 'one' is no task kind with the name 'shared'",
        ),
        ({"one": {"other": "KIND"}}, "'one:KIND' of the package 'one' is no task kind with the name 'other'"),
    ],
    ids=["twice", "ours", "broken", "no kind", "other name"],
)
def test_kind_that_cannot_be_used_is_an_error_that_names_the_package(tmp_path, monkeypatch, packages, words):
    lines = (
        "from rankfold.tasks.kinds.regression import Regression",
        "class Kind(Regression): name = 'shared'",
    )
    module = "\n".join((*lines, "KIND = Kind()", "NUMBER = 1"))
    for name, entries in packages.items():
        write_package(tmp_path, name, module, entries)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (name,) = {entry for entries in packages.values() for entry in entries}
    with pytest.raises(SpecError, match=words):
        find_kind(name)
    for name in packages:
        sys.modules.pop(name, None)
