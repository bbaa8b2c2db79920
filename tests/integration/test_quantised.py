"""Adapters on quantised bases, where the library that quantises is installed; all of it on the CPU."""

from dataclasses import replace

import peft
import pytest
import torch
from transformers import BertForSequenceClassification, BitsAndBytesConfig, TorchAoConfig

from rankfold import RankfoldWarning
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from tests.integration.models import adapted, bert, config_of, scores, train
from tests.support.killing import StopAt
from tests.support.tiny_models import review_rows, write_bert, write_splits
from tests.support.tolerance import relative_rms

# What the two libraries say on import and on use is not ours to change.
pytestmark = pytest.mark.filterwarnings("ignore")
HEAD = ["classifier"]


def wide_bert():
    """A model whose layers are wide enough for blocks of 64 weights."""
    return bert(hidden_size=64, intermediate_size=128)


def torchao_int8():
    quantisation = pytest.importorskip("torchao.quantization", reason="needs torchao")
    return TorchAoConfig(quantisation.Int8WeightOnlyConfig(), modules_to_not_convert=HEAD)


def bitsandbytes_8bit():
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=HEAD)


def bitsandbytes_4bit():
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=HEAD)


def test_run_on_a_quantised_base_resumes_bit_for_bit(tmp_path):
    """Through the request, with an optimiser in 8 bits, and stopped in between."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    write_bert(tmp_path / "bert", hidden_size=64)
    write_splits(tmp_path / "data", train=review_rows(48), validation=review_rows(16, seed=1))
    for bits in ("4bit", "8bit"):
        request = RunRequest(
            model=str(tmp_path / "bert"),
            method="relayed_lora",
            options={"r": 4, "k": 2},
            data=str(tmp_path / "data"),
            out=tmp_path / bits,
            quantise=bits,
            optimizer="adamw_8bit",
            gradient_accumulation=2,
            gradient_checkpointing=True,
            steps=6,
            learning_rate=1e-2,
            max_length=32,
            checkpoint_every=1,
        )
        whole = run(replace(request, out=tmp_path / f"whole{bits}"))
        with pytest.raises(KeyboardInterrupt):
            run(request, progress=StopAt(4))
        resumed = run(replace(request, resume=True))
        assert (resumed.curve.train, resumed.predictions) == (whole.curve.train, whole.predictions)
        assert resumed.request.quantise == bits
        assert resumed.curve.train[-1]["loss"] < resumed.curve.train[0]["loss"]


# How far merging moves the scores: the merged weight is rounded to the quantised grid once more.
ROUNDING = {torchao_int8: 0.01, bitsandbytes_8bit: 0.02, bitsandbytes_4bit: 0.1}

QUANTISED = pytest.mark.parametrize("quantised", ROUNDING, ids=lambda make: make.__name__)
METHOD = pytest.mark.parametrize("method", ["lora", "relayed_lora", "tlora"])


@pytest.fixture
def base(quantised, tmp_path):
    """A function that loads the same quantised base each time."""
    config = quantised()
    wide_bert().save_pretrained(tmp_path / "base")
    return lambda: BertForSequenceClassification.from_pretrained(
        tmp_path / "base", quantization_config=config, device_map="cpu"
    ).eval()


@QUANTISED
@METHOD
def test_adapter_on_a_quantised_base_learns_and_is_loaded_as_it_was_saved(quantised, method, base, tmp_path):
    model = adapted(config_of(method), base())
    assert model.base_model.model.bert.encoder.layer[0].attention.self.query.quantization_backend is not None
    losses = train(model, steps=3)
    assert losses[-1] < losses[0]
    expected = scores(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    assert torch.equal(scores(loaded), expected)
    # The fingerprint recognises the base that was quantised.
    on_float = peft.PeftModel.from_pretrained(wide_bert(), tmp_path / "adapter").eval()
    assert relative_rms(scores(on_float), expected) < 0.2


@QUANTISED
@METHOD
def test_unmerging_restores_a_quantised_base(quantised, method, base):
    model = adapted(config_of(method), base())
    expected = scores(model)
    with pytest.warns(RankfoldWarning, match="rounded away"):
        model.merge_adapter()
    assert 0 < relative_rms(scores(model), expected) < ROUNDING[quantised]
    model.unmerge_adapter()
    assert torch.equal(scores(model), expected)
    assert relative_rms(scores(model.merge_and_unload()), expected) < ROUNDING[quantised]
