"""An adapter is evaluated in every form without its run.json: task and class names are in its manifest."""

import json
import shutil

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.tiny_models import review_rows, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NAMES = {0: "bad", 1: "good"}


def call(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, result.stderr
    return result


def rows(names, keep=(0, 1)):
    """Return reviews with other names of their labels, of some of the labels only."""
    return [row | {"label": names[row["label"]]} for row in review_rows(40, seed=3) if row["label"] in keep]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("manifest")


@pytest.fixture(scope="module")
def forms(folder, tiny_bert):
    """The same adapter in every form."""
    write_splits(folder / "data", train=rows(NAMES), validation=rows(NAMES))
    run = folder / "run"
    words = ["--steps", 6, "--batch-size", 8, "--max-length", 32, "--learning-rate", 0.02]
    call("train", "--model", tiny_bert, "--data", folder / "data", "--method", "lora", "--out", run, *words)
    call("pack", run, folder / "packed")
    call("unpack", folder / "packed", folder / "unpacked")
    call("store", "put", folder / "store.db", "a", run)
    call("store", "get", folder / "store.db", "a", folder / "got")
    call("export", run, folder / "lora")
    (folder / "bare").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "rankfold.json"):
        (folder / "bare" / name).write_bytes((run / name).read_bytes())
    forms = {name: folder / name for name in ("run", "packed", "unpacked", "got", "lora", "bare")}
    return {**forms, "record": f"{folder / 'store.db'}#a"}


@pytest.mark.parametrize("form", ["packed", "unpacked", "got", "record", "lora", "bare"])
def test_every_form_is_evaluated_as_the_run_is(form, forms, folder):
    data = ("--data", folder / "data", "--json")
    expected, result = (json.loads(call("evaluate", forms[name], *data).stdout) for name in ("run", form))
    assert result["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("form", ["run", "packed", "record", "lora"])
@pytest.mark.parametrize("labels", ["renamed", "numbers", "swapped words"])
def test_labels_that_were_not_learned_are_refused_by_name(form, labels, forms, folder, tmp_path):
    names = {
        "renamed": {0: "negative", 1: "positive"},
        "numbers": {0: 0, 1: 1},
        "swapped words": {0: "Bad news", 1: "no good"},
    }[labels]
    write_splits(tmp_path / "data", validation=rows(names))
    stderr = call("evaluate", forms[form], "--data", tmp_path / "data", code=2).stderr
    assert str(names[0]) in stderr
    assert "the learned classes are 'bad', 'good'; use data with the same classes" in stderr


@pytest.mark.parametrize("form", ["run", "packed", "lora"])
def test_some_of_the_classes_are_measured(form, forms, tmp_path):
    write_splits(tmp_path / "data", validation=rows(NAMES, keep=(1,)))
    result = json.loads(call("evaluate", forms[form], "--data", tmp_path / "data", "--json").stdout)
    assert 0 <= result["metrics"]["accuracy"] <= 1


LIES = {
    "unknown setting": ({"settings": {"run": "rm -rf"}}, "setting 'run' = \"rm -rf\" is none of the kind"),
    "setting of another kind": ({"settings": {"separator": ";"}}, "setting 'separator' = \";\" is none"),
    "kind for another head": (
        {"kind": "token_labels"},
        "for TOKEN_CLS, and the adapter has one for SEQ_CLS",
    ),
    "kind without head": ({"kind": "instruction"}, "head for CAUSAL_LM, and the adapter has one for SEQ_CLS"),
    "kind with one output": (
        {"kind": "regression", "label_names": None},
        "as many labels as the adapter was",
    ),
    "scale that is none": (
        {"kind": "regression", "label_names": None, "settings": {"scale": 3}},
        "setting 'scale' = 3 is none of the kind 'regression'",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_task_that_contradicts_the_adapter_or_its_record_is_refused(lie, forms, tmp_path):
    changes, fault = LIES[lie]
    for form, expected in {
        "bare": fault,
        "run": f"another 'task.{next(iter(changes))}' than run.json",
    }.items():
        shutil.copytree(forms[form], tmp_path / form)
        values = json.loads((tmp_path / form / "rankfold.json").read_text())
        values["task"] |= changes
        (tmp_path / form / "rankfold.json").write_text(json.dumps(values))
        assert expected in call("predict", tmp_path / form, "--text", "a film", code=2).stderr


def test_flipped_bit_is_refused_by_the_record_too(forms, folder, tmp_path):
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for path in forms["run"].iterdir():
        (spoilt / path.name).write_bytes(path.read_bytes())
    weights = bytearray((spoilt / "adapter_model.safetensors").read_bytes())
    weights[-3] ^= 1
    (spoilt / "adapter_model.safetensors").write_bytes(weights)
    assert "have changed since they were saved" in call("evaluate", spoilt, code=2).stderr
    (spoilt / "rankfold.json").unlink()
    assert "whose digest is in run.json" in call("evaluate", spoilt, code=2).stderr


def test_embedded_model_goes_by_its_name(tmp_path):
    words = ["--task", "bbc_news", "--train-rows", 8, "--eval-rows", 8, "--steps", 1, "--max-length", 8]
    call("train", "--model", "minilm", "--method", "lora", "--set", "r=1", *words, "--out", tmp_path / "run")
    for name in ("adapter_config.json", "rankfold.json", "run.json"):
        assert "site-packages" not in (tmp_path / "run" / name).read_text("utf-8")
    call("store", "put", tmp_path / "store.db", "a", tmp_path / "run")
    (record,) = json.loads(call("store", "list", tmp_path / "store.db", "--json").stdout)
    assert record["base"] == "minilm"
    certificate = json.loads(call("export", tmp_path / "run", tmp_path / "lora", "--json").stdout)
    assert certificate["base"]["name"] == "minilm"
    assert certificate["base"]["sha256"]
