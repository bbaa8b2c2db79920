"""Saved adapters that do not fit a model, or are not whole, are refused with the reason and the remedy."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import rankfold
from rankfold import AdapterFileError, RankfoldWarning, SpecError
from rankfold.presets import discover
from rankfold.store.loading import load_adapter
from tests.integration.models import METHODS, adapted, bert, config_of, learned, scores

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LOADERS = {"peft": peft.PeftModel.from_pretrained, "rankfold": load_adapter}
EVERYWHERE = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


def change_config(folder, **fields):
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **fields}))


@pytest.fixture
def folder(tmp_path):
    adapted(config_of("lora")).save_pretrained(tmp_path)
    return tmp_path


@EVERYWHERE
def test_adapter_without_its_head_is_refused_with_the_name_of_the_head(tmp_path, load):
    adapted(config_of("lora", task_type=None)).save_pretrained(tmp_path)
    change_config(tmp_path, task_type="SEQ_CLS")
    with pytest.raises(AdapterFileError, match=r"saved without 'classifier'.*task_type"):
        load(bert(), tmp_path)
    change_config(tmp_path, task_type=None)
    assert load(bert(), tmp_path)


@EVERYWHERE
def test_head_of_another_size_is_refused_with_both_sizes(folder, load):
    with pytest.raises(AdapterFileError, match=r"'classifier' has the size \(3, 32\) .* \(5, 32\)"):
        load(bert(num_labels=5), folder)
    assert load(bert(), folder)


@pytest.mark.filterwarnings("ignore:Some weights of PeftModel")
def test_head_of_another_size_is_left_out_where_peft_is_told_to(folder):
    assert peft.PeftModel.from_pretrained(bert(num_labels=5), folder, ignore_mismatched_sizes=True)


@EVERYWHERE
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["rankfold_up", "classifier"])
def test_value_that_is_not_finite_is_refused_with_its_tensor(folder, load, value, part):
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if part in name)
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(AdapterFileError, match=rf"not finite, in '.*{part}"):
        load(bert(), folder)


@EVERYWHERE
def test_unknown_field_of_a_configuration_is_refused(folder, load):
    change_config(folder, sparsity=0.5)
    with pytest.raises((AdapterFileError, SpecError), match="sparsity"):
        load(bert(), folder)


def test_unknown_field_is_left_out_where_loading_is_not_strict(folder):
    expected = scores(load_adapter(bert(), folder))
    change_config(folder, sparsity=0.5)
    with pytest.warns(RankfoldWarning, match="unknown fields 'sparsity', which are left out"):
        loaded = load_adapter(bert(), folder, strict=False)
    assert torch.equal(scores(loaded), expected)


def first_values(config):
    return torch.cat([parameter.flatten() for parameter in learned(adapted(config)).values()])


@pytest.mark.parametrize("method", METHODS)
def test_seed_none_is_that_of_torch_and_is_saved(method, tmp_path):
    def started(seed):
        transformers.set_seed(seed)
        return adapted(config_of(method, seed=None))

    models = [started(seed) for seed in (1, 1, 2)]
    outputs = [scores(model) for model in models]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(scores(adapted(config_of(method, seed=1))), outputs[0])
    models[2].save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["seed"] == 2
    transformers.set_seed(3)
    assert torch.equal(scores(peft.PeftModel.from_pretrained(bert(), tmp_path).eval()), outputs[2])


def test_seed_is_zero_where_none_is_given_whatever_torch_has():
    transformers.set_seed(4)
    assert torch.equal(first_values(config_of("lora")), first_values(config_of("lora", seed=0)))


@pytest.mark.parametrize("method", discover())
@pytest.mark.parametrize("options", [{}, {"target_modules": ["value", "query"], "modules_to_save": ["head"]}])
def test_fields_of_a_configuration_are_what_its_json_says(method, options):
    fields = rankfold.config(method, **options).to_dict()
    assert json.loads(json.dumps(fields)) == fields
