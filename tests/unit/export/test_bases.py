"""Exports of adapters on bases of many kinds: with and without tokenizer, head, decoder or text."""

from pathlib import Path

import peft
import pytest
import torch
import transformers

import rankfold
from rankfold.errors import SpecError
from rankfold.export.base import model_class, open_rankfold_adapter
from rankfold.export.export import ExportRequest, export
from tests.support.tiny_models import VOCABULARY

_SMALL = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_WORDS = torch.arange(3, 15).reshape(2, 6)
_PICTURES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


def _gpt2():
    size = transformers.GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(size)


def _t5():
    size = transformers.T5Config(
        vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(size)


def _vit():
    size = transformers.ViTConfig(
        **{**_SMALL, "intermediate_size": 24}, image_size=16, patch_size=8, num_labels=3
    )
    return transformers.ViTForImageClassification(size)


def _bert():
    return transformers.BertModel(transformers.BertConfig(**_SMALL, intermediate_size=24))


BASES = {
    "gpt2": (_gpt2, {"input_ids": _WORDS}, {"modules_to_save": ["ln_f"]}),
    "t5": (_t5, {"input_ids": _WORDS, "decoder_input_ids": _WORDS}, {"rank_pattern": {"q": 3}}),
    "vit": (
        _vit,
        {"pixel_values": _PICTURES},
        {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]},
    ),
    "bert": (_bert, {"input_ids": _WORDS}, {"task_type": "FEATURE_EXTRACTION"}),
}


@pytest.mark.filterwarnings("ignore:r=:rankfold.RankfoldWarning")
@pytest.mark.parametrize("method", ["tlora", "nora"])
@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("to", ["lora", "merged"])
def test_adapter_on_any_base_is_exported_whether_or_not_its_logits_can_be_compared(
    tmp_path, monkeypatch, name, method, to
):
    monkeypatch.chdir(tmp_path)
    make, batch, options = BASES[name]
    torch.manual_seed(0)
    make().save_pretrained("base")
    cls = type(make())
    config = rankfold.config(method, r=2, init_weights=False, **options)
    model = peft.get_peft_model(cls.from_pretrained("base"), config).eval()
    expected = model(**batch)[0]
    model.save_pretrained("adapter")
    certificate = rankfold.export_lora("adapter", "plain") if to == "lora" else _merged()
    assert certificate.logits_skipped == "the base model 'base' has no tokenizer, or reads no text."
    if to == "lora":
        plain = peft.PeftModel.from_pretrained(cls.from_pretrained("base"), "plain").eval()
    else:
        plain = cls.from_pretrained("plain").eval()
    without = cls.from_pretrained("base").eval()(**batch)[0]
    change = (without - expected).norm()
    assert change > 1e-3 * expected.norm()
    assert (plain(**batch)[0] - expected).norm() <= 1e-3 * change


def _merged():
    return export(ExportRequest(adapter=Path("adapter"), out=Path("plain"), to="merged"))


@pytest.mark.parametrize("name", ["AutoTokenizer", "NoSuchModel", "logging"])
def test_a_class_that_is_no_model_of_transformers_is_refused(name):
    config = rankfold.config("lora", r=2)
    config.auto_mapping = {"base_model_class": name, "parent_library": "os"}
    with pytest.raises(SpecError, match=f"no model '{name}'"):
        model_class(config, transformers.BertConfig())


@pytest.mark.filterwarnings("ignore:r=:rankfold.RankfoldWarning")
def test_core_of_an_adapter_on_a_head_is_not_taken_for_the_head(tmp_path):
    size = transformers.BertConfig(**_SMALL, intermediate_size=24, num_labels=2)
    base = transformers.BertForSequenceClassification(size)
    config = rankfold.config("tlora", r=4, target_modules=["query", "classifier"])
    peft.get_peft_model(base, config).save_pretrained(tmp_path)
    adapter = open_rankfold_adapter(tmp_path)
    assert any("classifier.rankfold_core" in key for key in adapter.saved.tensors)
    assert adapter.labels is None
