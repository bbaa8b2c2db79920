"""An adapter acts alike on a model with a head and on the model inside of it."""

import peft
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import rankfold
from rankfold.errors import RankfoldWarning
from rankfold.presets import discover

CONFIG = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.tensor([[1, 2, 3, 4]])


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**CONFIG, intermediate_size=64)).eval()


@pytest.mark.parametrize("method", ["lora", "relayed_lora", "share_lora", "tlora"])
def test_adapter_of_a_model_with_a_head_is_loaded_on_the_model_inside_and_back(method, tmp_path):
    assert method in discover()
    config = rankfold.config(
        method,
        r=4,
        **({"k": 2} if method == "relayed_lora" else {}),
        target_modules=["query", "dense"],
        exclude_modules=["pooler.dense"],
    )
    model = peft.get_peft_model(bert(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(tmp_path / "whole")
    inner = peft.PeftModel.from_pretrained(bert().bert, tmp_path / "whole").eval()
    expected = model.get_base_model().bert(IDS).last_hidden_state
    assert torch.equal(inner.get_base_model()(IDS).last_hidden_state, expected)
    inner.save_pretrained(tmp_path / "inner")
    whole = peft.PeftModel.from_pretrained(bert(), tmp_path / "inner").eval()
    assert torch.equal(whole(IDS).logits, model(IDS).logits)


def test_head_that_the_model_inside_lacks_is_named(tmp_path):
    config = rankfold.config("lora", r=4, target_modules=["query"], task_type="SEQ_CLS")
    peft.get_peft_model(bert(), config).save_pretrained(tmp_path)
    with pytest.warns(RankfoldWarning, match="'classifier' is left out"):
        peft.PeftModel.from_pretrained(bert().bert, tmp_path)
