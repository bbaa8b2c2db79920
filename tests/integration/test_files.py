"""Saving and loading keep every trained parameter, bit for bit."""

import json
from functools import cache
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rankfold.adapter import ROLES
from rankfold.errors import SpecError
from rankfold.export.layers import needs_base_weights
from rankfold.peft_plugin.count import count_parameters
from rankfold.store.loading import load_adapter
from tests.integration.models import (
    FOLDABLE,
    METHODS,
    PICTURE_TARGETS,
    adapted,
    bert,
    config_of,
    gpt2,
    learned,
    picture,
    scores,
    train,
)

ALL = pytest.mark.parametrize("method", METHODS)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@cache
def trained(method: str) -> Any:
    """Return a trained model, the same object each time: tests only read it."""
    model = adapted(config_of(method))
    train(model)
    return model


@ALL
def test_loaded_adapter_gives_the_same_scores(method, tmp_path):
    trained(method).save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}, {"adapter_name": "other"}, {"is_trainable": True}):
        loaded = peft.PeftModel.from_pretrained(bert(), tmp_path, **options).eval()
        assert torch.equal(scores(loaded), scores(trained(method))), options
        adapters = learned(loaded)
        assert len(adapters) == len(learned(trained(method)))
        assert all(parameter.requires_grad == ("is_trainable" in options) for parameter in adapters.values())


NEEDS_BASE_WEIGHTS = [name for name in METHODS if needs_base_weights(config_of(name))]
LAYER_BY_LAYER = {
    "bert.embeddings": "cpu",
    "bert.encoder.layer.0": "cpu",
    "bert.encoder.layer.1": "disk",
    "bert.pooler": "cpu",
    "classifier": "cpu",
}


def on_disk(base, adapter, folder, **options):
    """Return a model of which a layer is on a disk, with an adapter."""
    model = BertForSequenceClassification.from_pretrained(
        base, device_map=LAYER_BY_LAYER, offload_folder=folder / "base"
    )
    places = {f"base_model.model.{path}": place for path, place in LAYER_BY_LAYER.items()}
    return peft.PeftModel.from_pretrained(
        model, adapter, device_map=places, offload_folder=folder / "adapter", **options
    ).eval()


# PEFT reads an adapter once more where a layer is on a disk, and torch says what it does without.
@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("low_cpu", [False, True], ids=["usual", "low_cpu_mem_usage"])
@ALL
def test_adapter_is_loaded_for_a_model_of_which_a_layer_is_on_a_disk(method, low_cpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PEFT puts a copy of what is on the disk below the working directory
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    bert().save_pretrained(base)
    model = adapted(config_of(method), BertForSequenceClassification.from_pretrained(base))
    model.save_pretrained(adapter)
    loaded = on_disk(base, adapter, tmp_path, low_cpu_mem_usage=low_cpu)
    if method in NEEDS_BASE_WEIGHTS:
        with pytest.raises(SpecError, match="load all of the base into memory"):
            scores(loaded)
    else:
        assert torch.equal(scores(loaded), scores(model))


@ALL
def test_auto_class_gives_the_same_scores(method, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    bert().save_pretrained(base)
    model = adapted(config_of(method), BertForSequenceClassification.from_pretrained(base))
    model.save_pretrained(adapter)
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3).eval()
    assert torch.equal(scores(loaded), scores(model))


@ALL
def test_adapter_loaded_beside_others_gives_the_same_scores(method, tmp_path):
    trained(method).save_pretrained(tmp_path)
    model = adapted(config_of("tlora_plus", seed=3), adapter_name="first")
    model.load_adapter(tmp_path, adapter_name="second")
    model.load_adapter(tmp_path, adapter_name="third", low_cpu_mem_usage=True)
    model.set_adapter("third")
    model.delete_adapter("first")
    model.delete_adapter("second")
    assert torch.equal(scores(model), scores(trained(method)))
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "third" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()


@ALL
def test_saving_again_gives_the_same_file(method, tmp_path):
    trained(method).save_pretrained(tmp_path / "one")
    loaded = peft.PeftModel.from_pretrained(bert(), tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()
    one, two = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("one", "two"))
    # PEFT itself lists the head of a classifier once more each time.
    one["modules_to_save"], two["modules_to_save"] = set(one["modules_to_save"]), set(two["modules_to_save"])
    assert one == two


@ALL
def test_file_holds_each_learned_number_once_and_nothing_else(method, tmp_path):
    model = adapted(config_of(method))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    head = {name for name in stored if "classifier" in name}
    adapters = {name.replace(".default", ""): parameter for name, parameter in learned(model).items()}
    assert stored.keys() - head == adapters.keys()
    assert all(torch.equal(stored[name], parameter) for name, parameter in adapters.items())
    for name in adapters:
        role, _attribute = name.split(".rankfold_")[1].split(".")
        assert role in ROLES


@pytest.mark.parametrize("method", FOLDABLE)
def test_picture_adapter_gives_the_same_scores_when_loaded(method, tmp_path):
    model = adapted(config_of(method, target_modules=PICTURE_TARGETS, task_type=None), picture())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(picture(), tmp_path).eval()
    assert torch.equal(scores(loaded), scores(model))
    assert not torch.equal(scores(loaded), scores(picture()))


@ALL
def test_gpt2_adapter_gives_the_same_scores_when_loaded(method, tmp_path):
    targets = ["c_attn", "c_fc", "mlp.c_proj"]
    model = adapted(config_of(method, target_modules=targets, task_type="CAUSAL_LM"), gpt2())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(gpt2(), tmp_path).eval()
    assert torch.equal(scores(loaded), scores(model))


@ALL
def test_state_can_be_set_by_function(method):
    state = peft.get_peft_model_state_dict(trained(method))
    other = adapted(config_of("lora"), adapter_name="first")
    other.add_adapter("second", trained(method).peft_config["default"])
    other.set_adapter("second")
    peft.set_peft_model_state_dict(other, state, adapter_name="second")
    assert torch.equal(scores(other.eval()), scores(trained(method)))


@ALL
def test_injection_by_the_keys_of_a_state_dict_finds_the_same_layers(method):
    original = adapted(config_of(method, task_type=None))
    prefix = "base_model.model."
    state = {
        name.removeprefix(prefix): value for name, value in peft.get_peft_model_state_dict(original).items()
    }
    model = peft.inject_adapter_in_model(original.peft_config["default"], bert(), state_dict=state)
    assert not peft.set_peft_model_state_dict(model, state).unexpected_keys
    assert torch.equal(scores(model.eval()), scores(original))


# torch imports its own deprecated parts when it first compiles.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@ALL
def test_injection_into_a_compiled_model_finds_the_same_layers(method):
    config = config_of(method, task_type=None)
    plain = peft.inject_adapter_in_model(config, bert())
    state = peft.get_peft_model_state_dict(plain)
    for options in ({}, {"state_dict": state}):
        compiled = peft.inject_adapter_in_model(config, torch.compile(bert()), **options)
        same = {name.removeprefix("_orig_mod."): value for name, value in compiled.state_dict().items()}
        assert same.keys() == plain.state_dict().keys()
        assert all(torch.equal(same[name], value) for name, value in plain.state_dict().items())


def test_configuration_keeps_every_option(tmp_path):
    config = config_of(
        "relayed_lora",
        rank_pattern={"layer.0.*query": 3},
        alpha_pattern={"value": 2.0},
        exclude_modules=["x"],
    )
    config.save_pretrained(tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_base_model_is_never_written(tmp_path):
    adapted(config_of("lora")).save_pretrained(tmp_path)
    assert not any("base_layer" in name for name in load_file(tmp_path / WEIGHTS))


def llama(vocab_size: int = 64) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, num_hidden_layers=1, **size)).eval()


@pytest.mark.filterwarnings("error:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    "targets", [["embed_tokens"], ["lm_head", "embed_tokens"], ".*(embed_tokens|q_proj)"]
)
@pytest.mark.parametrize("method", FOLDABLE)
def test_adapter_on_an_embedding_is_saved_without_the_embedding(method, targets, tmp_path):
    config = {"target_modules": targets, "task_type": "CAUSAL_LM"}
    if config_of(method, **config).target_modules != config_of("lora", **config).target_modules:
        pytest.skip("of this preset the small tests' configuration names the layers of a BERT's MLP too")
    model = adapted(config_of(method, **config), llama())
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert sum(tensor.numel() for tensor in stored.values()) == count_parameters(model).stored
    for loaded in (peft.PeftModel.from_pretrained(llama(), tmp_path).eval(), load_adapter(llama(), tmp_path)):
        assert torch.equal(scores(loaded), scores(model))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_file_with_the_embedding_is_still_loaded(tmp_path):
    model = adapted(config_of("lora", target_modules=["embed_tokens"], task_type="CAUSAL_LM"), llama())
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("base_layer" in name for name in load_file(tmp_path / WEIGHTS))
    for loaded in (peft.PeftModel.from_pretrained(llama(), tmp_path).eval(), load_adapter(llama(), tmp_path)):
        assert torch.equal(scores(loaded), scores(model))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("target", ["q_proj", "embed_tokens"])
def test_embedding_of_another_vocabulary_than_the_base_model_is_saved(target, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    base.resize_token_embeddings(70)
    config = config_of("lora", target_modules=[target], task_type="CAUSAL_LM")
    adapted(config, base).save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / WEIGHTS)
    assert any("embed_tokens" in name and "rankfold" not in name for name in stored)
