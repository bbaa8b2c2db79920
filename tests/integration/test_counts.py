"""One counter of parameters for every method of PEFT; it agrees with the files and with the gradients."""

import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

import rankfold
from rankfold import SpecError
from tests.support.peft_methods import METHODS

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def bert():
    return BertForSequenceClassification(BertConfig(**SIZES, vocab_size=30, max_position_embeddings=64))


def adapt(config, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about its own methods
        return peft.get_peft_model(bert(), config, **options)


@pytest.mark.parametrize("method", METHODS)
def test_counts_of_a_method_of_peft_are_those_of_its_file_and_its_gradients(method, tmp_path):
    model = adapt(METHODS[method]())
    count = rankfold.count_parameters(model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert count.stored + count.heads == sum(tensor.numel() for tensor in saved.values())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count.trainable + count.heads == count.active + count.heads == trainable
    for parts in (count.by_factor, count.by_module):
        assert sum(part.stored for part in parts.values()) == count.stored
        assert sum(part.active for part in parts.values()) == count.active


def test_counts_of_lora_are_by_tensor_and_by_layer():
    count = rankfold.count_parameters(adapt(METHODS["lora"]()))
    assert {name: part.stored for name, part in count.by_factor.items()} == {"lora_A": 512, "lora_B": 512}
    assert len(count.by_module) == 8
    assert count.heads == 2 * 16 + 2


def test_counts_of_one_adapter_leave_the_others_out():
    model = adapt(peft.LoraConfig(r=4, target_modules=["query"]))
    model.add_adapter("large", peft.LoraConfig(r=8, target_modules=["query"]))
    small, large = (rankfold.count_parameters(model, name) for name in ("default", "large"))
    assert 2 * small.stored == large.stored
    assert rankfold.count_parameters(model).stored == small.stored + large.stored
    assert (small.active, large.active) == (small.stored, 0)  # PEFT trains the active adapter only


def test_frozen_head_is_counted_as_it_is_saved():
    model = adapt(METHODS["lora"]())
    expected = rankfold.count_parameters(model).heads
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.requires_grad = False
    assert rankfold.count_parameters(model).heads == expected > 0


def test_model_without_adapter_and_unknown_names_are_refused():
    with pytest.raises(SpecError, match="no adapter to count"):
        rankfold.count_parameters(torch.nn.Linear(2, 2))
    with pytest.raises(SpecError, match=r"unknown adapter 'defualt'\. Did you mean 'default'\?"):
        rankfold.count_parameters(adapt(METHODS["lora"]()), "defualt")
