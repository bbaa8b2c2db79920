"""Exports of standardised regressions answer in the unit of the labels, or say what is left to compute."""

import warnings

import peft
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    RobertaConfig,
    XLMConfig,
)

import rankfold
from rankfold.export.certificate import read_certificate
from rankfold.export.verify import verify
from rankfold.store.loading import load_adapter
from rankfold.store.manifest import MANIFEST_NAME, Manifest, TaskManifest
from tests.support.toys import toy_sizes_allowed

MEAN, STD = 250_000.0, 90_000.0
IDS = torch.tensor([[4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 4, 5]])
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
BASES = {
    "bert": (None, ["query"]),
    "roberta": (RobertaConfig(**SIZES, pad_token_id=0), ["query"]),
    "llama": (LlamaConfig(**SIZES, pad_token_id=0), ["q_proj"]),
    "xlm": (XLMConfig(emb_dim=32, n_layers=1, n_heads=2), ["q_lin"]),
    "squashed": (XLMConfig(emb_dim=32, n_layers=1, n_heads=2, summary_activation="tanh"), ["q_lin"]),
}


def load(folder):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()


@torch.no_grad()
def outputs(model):
    return model(input_ids=IDS).logits.double()


def regression(name, tiny_bert, folder, *, mean=MEAN, std=STD):
    """A saved adapter with a manifest, and its base model's folder."""
    config, targets = BASES[name]
    base = folder / "base"
    if config is None:
        config = AutoConfig.from_pretrained(tiny_bert)
    config.vocab_size, config.num_labels = AutoConfig.from_pretrained(tiny_bert).vocab_size, 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(base)
    heads = ["sequence_summary"] if "xlm" in config.model_type else None
    with toy_sizes_allowed():
        options = {"task_type": "SEQ_CLS", "modules_to_save": heads, "init_weights": False, "r": 3, "k": 2}
        config = rankfold.config("relayed_lora", target_modules=targets, **options)
        peft.get_peft_model(load(base), config).save_pretrained(folder / "adapter")
    task = TaskManifest("houses", "regression", settings={"scale": {"mean": mean, "std": std}, "unit": "€"})
    (folder / "adapter" / MANIFEST_NAME).write_bytes(Manifest(task).to_json())
    return folder / "adapter", base


@pytest.mark.parametrize("to", ["lora", "merged"])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm"])
def test_export_answers_in_the_unit_of_the_labels(name, to, tiny_bert, reviews, tmp_path):
    adapter, base = regression(name, tiny_bert, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", rankfold.RankfoldWarning)
        certificate = rankfold.export_lora(adapter, tmp_path / "out", to=to, data=str(reviews))
    model = (
        load(tmp_path / "out")
        if to == "merged"
        else peft.PeftModel.from_pretrained(load(base), tmp_path / "out")
    )
    expected = MEAN + STD * outputs(load_adapter(load(base), adapter))
    torch.testing.assert_close(outputs(model.eval()), expected, rtol=1e-4, atol=STD * 1e-4)
    assert (certificate.label_scale.mean, certificate.label_scale.std) == (MEAN, STD)
    assert read_certificate(tmp_path / "out") == certificate
    assert {check.state for check in verify(tmp_path / "out", data=str(reviews))} == {"ok"}
    assert Manifest.from_json((tmp_path / "out" / MANIFEST_NAME).read_bytes()).task.settings == {"unit": "€"}


def test_head_without_a_bias_takes_the_standard_deviation_and_leaves_the_mean(tiny_bert, reviews, tmp_path):
    adapter, base = regression("llama", tiny_bert, tmp_path)
    with pytest.warns(rankfold.RankfoldWarning, match="an output, plus 250000, is in the unit"):
        rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))
    model = peft.PeftModel.from_pretrained(load(base), tmp_path / "out").eval()
    expected = STD * outputs(load_adapter(load(base), adapter))
    torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=STD * 1e-4)
    settings = Manifest.from_json((tmp_path / "out" / MANIFEST_NAME).read_bytes()).task.settings
    assert settings == {"scale": {"mean": MEAN, "std": 1.0}, "unit": "€"}


@pytest.mark.parametrize(
    ("name", "to", "dtype", "mean"),
    [
        ("squashed", "lora", "fp32", MEAN),
        ("bert", "merged", "fp16", MEAN),
        ("bert", "merged", "bf16", 1e7),
        ("bert", "lora", "fp32", 1e12),
    ],
)
def test_head_that_cannot_hold_the_scale_stays_with_a_warning(
    name, to, dtype, mean, tiny_bert, reviews, tmp_path
):
    adapter, _ = regression(name, tiny_bert, tmp_path, mean=mean)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        certificate = rankfold.export_lora(adapter, tmp_path / "out", to=to, dtype=dtype, data=str(reviews))
    assert any("90000 times an output" in str(warning.message) for warning in caught)
    assert certificate.label_scale is None
    settings = Manifest.from_json((tmp_path / "out" / MANIFEST_NAME).read_bytes()).task.settings
    assert settings["scale"] == {"mean": mean, "std": STD}


def test_scale_is_folded_without_the_base_model_too(tiny_bert, reviews, tmp_path):
    adapter, base = regression("bert", tiny_bert, tmp_path)
    expected = MEAN + STD * outputs(load_adapter(load(base), adapter))
    base.rename(tmp_path / "elsewhere")
    certificate = rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))
    assert certificate.logits is None
    model = peft.PeftModel.from_pretrained(load(tmp_path / "elsewhere"), tmp_path / "out").eval()
    torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=STD * 1e-4)
