"""Pushing an adapter: the card is valid, the files say nothing of this machine, and errors have a remedy."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from huggingface_hub.errors import RepositoryNotFoundError

import rankfold
from rankfold.cli.main import cli
from rankfold.errors import HubError, OutputExistsError, SpecError
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.store.manifest import MANIFEST_NAME
from tests.support.stored import make_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", MANIFEST_NAME}


@pytest.fixture(scope="module")
def trained(tiny_bert, reviews, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    run(
        RunRequest(
            model=str(tiny_bert),
            method="lora",
            data=str(reviews),
            out=out,
            options={"r": 2},
            steps=2,
            max_length=32,
            checkpoint_every=0,
        )
    )
    return out


class Hub:
    """The calls of the hub's API, and the files that were uploaded."""

    def __init__(self, error=None):
        self.calls, self.files, self.error = [], {}, error

    def HfApi(self, **_):  # noqa: N802 (the hub's name)
        return self

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        if self.error is not None:
            raise self.error

    def create_branch(self, repo_id, **options):
        self.calls.append(("create_branch", repo_id, options))

    def upload_folder(self, *, folder_path, **options):
        from pathlib import Path

        self.calls.append(("upload_folder", options["repo_id"], options))
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.HfApi)
    return hub


def test_card_of_a_run_is_valid_and_has_metrics_with_an_interval(trained, tmp_path):
    out = rankfold.push_adapter(trained, "me/reviews", licence="mit", out=tmp_path / "out")
    card, record = ModelCard.load(tmp_path / "out" / "README.md"), RunRecord.read(trained)
    assert out == str(tmp_path / "out")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        *("mit", "peft", "text-classification"),
    )
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results.keys() == record.metrics.keys()
    assert results["accuracy"].metric_value == round(record.metrics["accuracy"], 6)
    assert results["accuracy"].dataset_split == "validation"
    assert yaml.safe_load(card.data.to_yaml())["model-index"][0]["name"] == "reviews"
    for text in ("rankfold.load", "PeftModel.from_pretrained", "95 % interval", " to ", "Bytes", "majority"):
        assert text in card.text


def test_card_has_the_metrics_of_the_manifest_where_the_record_is_gone(trained, tmp_path):
    bare = shutil.copytree(trained, tmp_path / "bare")
    (bare / "run.json").unlink()
    cards = []
    for folder in (trained, bare):
        rankfold.push_adapter(folder, "me/reviews", out=tmp_path / f"{folder.name}-card")
        cards.append(ModelCard.load(tmp_path / f"{folder.name}-card" / "README.md"))
    assert cards[0].data.eval_results == cards[1].data.eval_results
    assert f"| accuracy | {RunRecord.read(trained).metrics['accuracy']:.4f} |" in cards[1].text


def test_files_name_no_place_of_this_machine_and_load_again(trained, tiny_bert, reviews, tmp_path):
    rankfold.push_adapter(trained, "me/reviews", out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        for place in (tiny_bert, reviews, trained):
            assert str(place).encode() not in content
            assert str(place.parent).encode() not in content
    again = rankfold.open_adapter(tmp_path / "out")
    assert again.manifest.task == rankfold.open_adapter(trained).manifest.task
    assert again.manifest.base.name == tiny_bert.name


def test_embedded_model_has_its_name_on_the_hub(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["base"]["name"] = "minilm"
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    (folder / "run.json").unlink()  # it has other names
    rankfold.push_adapter(folder, "me/x", out=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == (
        "sentence-transformers/all-MiniLM-L6-v2"
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert rankfold.open_adapter(tmp_path / "out").manifest.base.name == "minilm"


def test_foreign_adapter_has_a_card_without_results(tmp_path):
    make_adapter(base="owner/name").write(tmp_path / "adapter")
    rankfold.push_adapter(tmp_path / "adapter", "me/x", out=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "owner/name"
    assert card.data.eval_results is None
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


@pytest.mark.parametrize("name", ["a|b", "`x`", "a\nb", "- : {", "é", '"'])
def test_names_of_classes_break_neither_card_nor_metadata(name, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["task"] |= {"label_names": [name, "other"], "name": name}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    (folder / "run.json").unlink()  # it has other names
    rankfold.push_adapter(folder, "me/x", out=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.model_name == "x"


def test_upload_makes_the_repository_and_the_branch(trained, hub):
    result = CliRunner().invoke(
        cli, ["push", str(trained), "me/reviews", "--private", "--revision", "next", "--licence", "mit"]
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == "https://hub/commit/1"
    assert [call[0] for call in hub.calls] == ["create_repo", "create_branch", "upload_folder"]
    assert hub.calls[0][2] == {"private": True, "exist_ok": True}
    assert hub.calls[2][2]["revision"] == "next"
    assert hub.files.keys() == FILES


def test_dry_run_asks_the_hub_nothing(trained, hub, tmp_path):
    result = CliRunner().invoke(cli, ["push", str(trained), "me/x", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert not hub.calls
    with pytest.raises(OutputExistsError, match="choose another folder"):
        rankfold.push_adapter(trained, "me/x", out=tmp_path / "out")


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "me/ x", "../x", "me/x.git"])
def test_wrong_name_is_refused_before_anything_is_read(repo_id):
    with pytest.raises(SpecError, match="write it as owner/name"):
        rankfold.push_adapter("nowhere", repo_id)


RESPONSE = MagicMock(status_code=401, headers={})
ERRORS = {
    "refused": (RepositoryNotFoundError("401 Client Error. Nobody", response=RESPONSE), "hf auth login"),
    "no network": (RuntimeError("no route"), "check the network"),
    "time is out": (OSError("timed out"), "check the network"),
}


@pytest.mark.parametrize("fault", ERRORS)
def test_hub_that_refuses_or_is_away_is_one_sentence_with_a_remedy(fault, trained, monkeypatch):
    error, remedy = ERRORS[fault]
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(error).HfApi)
    with pytest.raises(HubError, match=f"'me/x'.*; .*{remedy}"):
        rankfold.push_adapter(trained, "me/x")
