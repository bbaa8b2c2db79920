"""`rankfold basis`: learned, shown, added and fitted from the command line."""

import json

import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification

import rankfold
from rankfold.cli.main import cli
from tests.support.tiny_models import tiny_bert

__all__ = ["tiny_bert"]


def run(*words):
    return CliRunner().invoke(cli, ["basis", *map(str, words)])


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    """Two adapters of PEFT's LoRA and a basis that was learned from them."""
    folder = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
        config = peft.LoraConfig(
            r=2, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False
        )
        peft.get_peft_model(base, config).save_pretrained(folder / name)
    words = ("--from", folder / "a", "--from", folder / "b", "--rank", 6, "--seeded", 0.25)
    learned = run("learn", *words, "--out", folder / "tiny.basis", "--json")
    assert learned.exit_code == 0, learned.output
    assert json.loads(learned.stdout)["rank"] == 6
    return folder


def test_basis_is_shown(folder):
    shown = run("show", folder / "tiny.basis")
    assert shown.exit_code == 0
    for part in (
        "basis 'tiny'",
        "of at most 6 directions",
        "25% of the directions",
        "by the first 4",
        "LORA",
    ):
        assert part in shown.stdout
    values = json.loads(run("show", folder / "tiny.basis", "--json").stdout)
    assert [source["name"] for source in values["sources"]] == ["a", "b"]


def test_adapter_is_fitted_and_its_loss_certified_layer_by_layer(folder, tiny_bert, tmp_path):
    words = ("fit", folder / "a", "--basis", folder / "tiny.basis", "--out", tmp_path / "fit", "--rank", 4)
    fitted = run(*words)
    assert fitted.exit_code == 0, fitted.output
    assert "APPROXIMATE" in fitted.stdout
    assert "largest difference" in fitted.stdout, "of the outputs, on real texts"
    certificate = json.loads((tmp_path / "fit" / "certificate.json").read_text())
    assert all(0 < layer["written"] < 1 for layer in certificate["layers"])
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "fit")
    assert rankfold.count_parameters(loaded).stored == sum(
        layer["rank"] ** 2 for layer in certificate["layers"]
    )
    assert run(*words).exit_code == 2, "it is there already"
    assert run(*words, "--overwrite").exit_code == 0
    exported = CliRunner().invoke(cli, ["export", str(tmp_path / "fit"), str(tmp_path / "plain")])
    assert exported.exit_code == 0, exported.output
    assert "exact up to rounding" in exported.stdout


def test_basis_is_added_once_and_found_by_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKFOLD_HOME", str(tmp_path))
    assert run("add", folder / "tiny.basis").exit_code == 0
    assert "tiny" in run("add", folder / "tiny.basis").stderr
    assert len(list((tmp_path / "bases").iterdir())) == 1
    assert run("fit", folder / "b", "--basis", "tiny", "--out", tmp_path / "fit").exit_code == 0


def test_wrong_use_is_one_line_with_its_exit_code(folder, tmp_path):
    (tmp_path / "none.basis").write_text("no container")
    for words, message in (
        (("show", tmp_path / "none.basis"), "this is no file of rankfold"),
        (("show", tmp_path / "absent"), "there is no folder or file"),
        (("learn", "--from", tmp_path / "absent", "--out", tmp_path / "x"), "there is no folder or file"),
        (("learn", "--from", folder / "a", "--out", folder / "tiny.basis"), "exists"),
        (("fit", folder / "a", "--basis", "absent", "--out", tmp_path / "x"), "there is no basis 'absent'"),
        (
            ("fit", folder / "a", "--basis", folder / "tiny.basis", "--out", tmp_path / "x", "--rank", 0),
            "rank=0",
        ),
    ):
        result = run(*words)
        assert result.exit_code == 2, words
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
