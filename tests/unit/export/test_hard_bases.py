"""Models with tied weights, nested names or grouped convolutions: what their certificate says, or nothing."""

import copy
import json

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import rankfold
from rankfold.errors import NotExactError
from rankfold.export.formats import find_format
from rankfold.store.loading import load_adapter
from tests.support.adapters import save_adapter
from tests.support.tolerance import relative_rms

IDS = torch.tensor([[4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 4, 5]])
# Models as narrow as these with adapters as strong amplify single precision's rounding of 6e-8.
ROUNDING = 5e-6


@pytest.fixture
def adapter(tiny_bert, tmp_path):
    return save_adapter(tmp_path / "adapter", tiny_bert)


@torch.no_grad()
def scores(model):
    return model(input_ids=IDS).logits


@pytest.fixture
def tied_llama(tiny_llama, tmp_path):
    """A folder with a Llama whose last layer reads the weight of its embedding."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied_llama")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "tied_llama")
    return tmp_path / "tied_llama"


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_merged_model_has_weights_of_its_own_for_an_embedding_and_a_head_that_were_tied(
    tied_llama, reviews, tmp_path, target
):
    adapter = save_adapter(tmp_path / "adapter", tied_llama, target_modules=[target, "q_proj"])
    expected = scores(load_adapter(AutoModelForCausalLM.from_pretrained(tied_llama), adapter))
    certificate = rankfold.export_lora(adapter, tmp_path / "lora", data=str(reviews))
    assert certificate.logits.largest < ROUNDING
    rankfold.export_lora(adapter, tmp_path / "out", to="merged", data=str(reviews))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert relative_rms(scores(merged), expected) < ROUNDING


def test_tied_weights_of_layers_that_are_not_adapted_are_merged(tied_llama, reviews, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tied_llama)
    rankfold.export_lora(adapter, tmp_path / "out", to="merged", data=str(reviews))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_export_that_says_something_else_than_the_adapter_is_refused(
    adapter, reviews, tmp_path, monkeypatch, to
):
    monkeypatch.setattr(type(find_format(to)), "load", lambda _format, base, _folder: base.load())
    with pytest.raises(NotExactError, match=r"they differ by .* where rounding explains 6\.0e-04"):
        rankfold.export_lora(adapter, tmp_path / "out", to=to, data=str(reviews))
    assert not (tmp_path / "out").exists()


def test_certificate_states_the_rank_of_the_files(tiny_llama, reviews, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_llama, "nora")
    certificate = rankfold.export_lora(adapter, tmp_path / "out", to="merged", data=str(reviews))
    assert {layer.rank for layer in certificate.layers} == {2}

    base = torch.nn.ModuleDict({"picture": torch.nn.Conv2d(4, 6, 3, groups=2)})
    config = rankfold.config("lora", r=3, target_modules=["picture"])
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "grouped")
    certificate = rankfold.export_lora(tmp_path / "grouped", tmp_path / "plain", data=str(reviews))
    written = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())["r"]
    assert certificate.rank == certificate.layers[0].rank == written == 6


class Nested(torch.nn.Module):
    """Layers whose whole names are the ends of another layer's and of a container's."""

    def __init__(self):
        super().__init__()
        self.fc, self.proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.inner = torch.nn.ModuleDict(
            {"fc": torch.nn.Linear(4, 4), "proj": torch.nn.Sequential(torch.nn.Linear(4, 4))}
        )

    def forward(self, x):
        return self.proj(self.inner["proj"](self.inner["fc"](self.fc(x))))


@torch.no_grad()
def test_layers_whose_names_end_others_get_the_exported_lora_alone(tmp_path):
    torch.manual_seed(0)
    base, x = Nested(), torch.randn(2, 4)
    config = rankfold.config("lora", r=2, target_modules="(fc|proj)", init_weights=False)
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    rankfold.export_lora(tmp_path / "adapter", tmp_path / "out")
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    assert relative_rms(plain(x), model(x)) < ROUNDING
    adapted = {name for name, module in plain.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"fc", "proj"}
