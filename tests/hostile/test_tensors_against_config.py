"""Tensors of a saved adapter are judged against its configuration before memory is taken for it."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankfold import AdapterFileError
from rankfold.store.loading import load_adapter
from rankfold.store.saved import open_adapter
from tests.integration.models import adapted, bert, config_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(params=["relayed_lora", "share_lora", "hydra_lora"])
def folder(request, tmp_path):
    adapted(config_of(request.param)).save_pretrained(tmp_path)
    return tmp_path


def factors_in(tensors):
    return sorted(key for key in tensors if ".rankfold_" in key)


def test_integers_are_refused_wherever_an_adapter_is_opened(folder):
    tensors = load_file(folder / WEIGHTS)
    for key in factors_in(tensors):
        save_file({**tensors, key: tensors[key].to(torch.int32)}, folder / WEIGHTS)
        with pytest.raises(AdapterFileError, match=f"'{key}' holds numbers of type int32"):
            open_adapter(folder)


def test_integers_in_a_head_and_of_other_methods_are_refused_when_loaded(tmp_path):
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    for number, (make, key) in enumerate(
        [(config_of("lora"), "base_model.model.classifier.weight"), (config, None)]
    ):
        folder = tmp_path / str(number)
        peft.get_peft_model(bert(), make).save_pretrained(folder)
        tensors = load_file(folder / WEIGHTS)
        key = key or min(tensors)
        save_file({**tensors, key: tensors[key].to(torch.int32)}, folder / WEIGHTS)
        with pytest.raises(AdapterFileError, match=f"'{key}' as int32, and the model computes with float32"):
            load_adapter(bert(), folder)


def test_every_tensor_of_another_shape_is_named(folder):
    tensors = load_file(folder / WEIGHTS)
    for key in factors_in(tensors):
        longer = torch.cat([tensors[key], tensors[key][:1]])
        save_file({**tensors, key: longer}, folder / WEIGHTS)
        with pytest.raises(AdapterFileError) as refusal:
            load_adapter(bert(), folder)
        assert f"'{key}' has shape {tuple(longer.shape)}, but its configuration asks for" in str(
            refusal.value
        )


def test_a_huge_rank_in_a_configuration_is_refused_before_memory_is_taken(folder, monkeypatch):
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, "r": 60_000, "rank_up": None}))
    monkeypatch.setattr("peft.PeftModelForSequenceClassification.__init__", None)  # nothing may be built
    with pytest.raises(AdapterFileError, match="asks for"):
        load_adapter(bert(), folder)
