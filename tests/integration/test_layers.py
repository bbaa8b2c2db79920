"""A saved adapter lists its layers, and says so where it is loaded on others."""

import json

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

import rankfold
from rankfold.errors import AdapterFileError
from tests.integration.models import FOLDABLE, adapted, bert, config_of, scores

CONFIG = "adapter_config.json"


@pytest.fixture
def saved_folder(tmp_path):
    adapted(config_of("relayed_lora", task_type=None)).save_pretrained(tmp_path)
    return tmp_path


def rewritten(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_saved_configuration_lists_the_layers(saved_folder):
    layers = json.loads((saved_folder / CONFIG).read_text())["layers"]
    names = [f"bert.encoder.layer.{{0-1}}.attention.self.{leaf}" for leaf in ("query", "value")]
    assert layers == {"linear 32 -> 32": names}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_size": 48}, "is linear 48 -> 48 in this model, but was linear 32 -> 32"),
        (
            {"num_hidden_layers": 3},
            r"layer\.2\.attention\.self\.query' is linear 32 -> 32 in this model, but was not adapted",
        ),
        ({"num_hidden_layers": 1}, "is not adapted in this model, but was linear 32 -> 32"),
    ],
    ids=str,
)
def test_adapter_of_other_layers_is_refused_by_the_first_that_differs(saved_folder, options, words):
    with pytest.raises(AdapterFileError, match=words):
        peft.PeftModel.from_pretrained(bert(**options), saved_folder)


def test_adapter_with_other_targets_than_it_was_saved_with_is_refused(saved_folder):
    rewritten(saved_folder, target_modules=["query"])
    with pytest.raises(
        AdapterFileError, match=r"value' is not adapted in this model, but was linear 32 -> 32"
    ):
        peft.PeftModel.from_pretrained(bert(), saved_folder)


def test_damaged_list_of_layers_is_refused(saved_folder):
    rewritten(saved_folder, layers={"linear": ["bert"]})
    with pytest.raises(AdapterFileError, match="list of layers names 'linear'"):
        peft.PeftModel.from_pretrained(bert(), saved_folder)


@pytest.mark.parametrize("method", FOLDABLE)
def test_adapter_is_recognised_wherever_the_model_hangs(method, tmp_path):
    model = adapted(config_of(method, task_type=None))
    expected = scores(model)
    model.save_pretrained(tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    outer = nn.ModuleDict({"deep": nn.ModuleDict({"inner": bert()})})
    wrapped = peft.inject_adapter_in_model(config, outer)
    state = {
        key.replace("base_model.model.", "deep.inner."): value
        for key, value in peft.get_peft_model_state_dict(model).items()
    }
    peft.set_peft_model_state_dict(wrapped, state)
    assert torch.equal(scores(wrapped["deep"]["inner"]), expected)


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
def test_all_linear_leaves_the_head_to_its_own_training(task_type):
    kinds = {
        "SEQ_CLS": BertForSequenceClassification,
        "TOKEN_CLS": BertForTokenClassification,
        "QUESTION_ANS": BertForQuestionAnswering,
    }
    size = BertConfig(
        vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8
    )
    config = rankfold.config("lora", r=2, target_modules="all-linear", task_type=task_type)
    model = peft.get_peft_model(kinds[task_type](size), config)
    heads = [name for name, _ in model.named_modules() if name.endswith(("classifier", "qa_outputs"))]
    assert not any("classifier" in name or "qa_outputs" in name for name in config.target_modules)
    assert heads
    assert all(
        parameter.requires_grad for name, parameter in model.named_parameters() if ".modules_to_save." in name
    )
