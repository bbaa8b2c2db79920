"""Runs on a learned basis: a task that the basis has seen is warned of, and the size names the basis."""

import shutil
from dataclasses import replace

import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification

from rankfold.cli.main import cli
from rankfold.errors import RankfoldWarning
from rankfold.export.bases import BasisRequest, learn_basis
from rankfold.runs.run import run
from rankfold.store.adapter import SavedAdapter
from rankfold.store.basis import bases_folder, read_basis
from rankfold.store.manifest import Manifest, TaskManifest
from rankfold.store.saved import open_adapter
from tests.support.tiny_models import request_, reviews, tiny_bert

__all__ = ["request_", "reviews", "tiny_bert"]


@pytest.fixture
def source(tiny_bert, tmp_path) -> SavedAdapter:
    """An adapter on all linear layers."""
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "source")
    return open_adapter(tmp_path / "source")


def learned_from(source, task, folder):
    """The file of a basis that was learned from an adapter of a task."""
    manifest = Manifest(task=TaskManifest(task, "classification"))
    replace(source, manifest_text=manifest.to_json()).write(folder / task)
    learn_basis(BasisRequest(sources=[folder / task], out=folder / f"{task}.basis", rank=6))
    return folder / f"{task}.basis"


def test_run_on_a_task_that_the_basis_has_seen_is_warned_of(request_, source, tmp_path):
    for task in ("reviews", "other"):
        file = learned_from(source, task, tmp_path)
        options = {"basis": str(file), "r": 2}
        request = replace(request_, method="basis_core", options=options, out=tmp_path / f"run-{task}")
        if task == "other":
            run(request)  # a warning would be an error here
        else:
            with pytest.warns(RankfoldWarning, match="was learned from an adapter of 'reviews' too"):
                run(request)
    digest = read_basis(file)[1].digest
    size = CliRunner().invoke(cli, ["size", str(tmp_path / "run-other")])
    assert f"its frozen sides are in the basis {digest}, {file.stat().st_size:,} bytes" in size.stderr
    assert "core" in size.stdout
    config = (tmp_path / "run-other" / "adapter_config.json").read_text()
    assert digest in config
    assert str(file) not in config
    assert any(digest in kept.name for kept in bases_folder().iterdir()), "found later without its file"
    shutil.rmtree(tmp_path / "other")
    file.unlink()
    evaluated = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "run-other")])
    assert evaluated.exit_code == 0, evaluated.output
