"""Impossible configurations are refused with the remedy, and the model is left as it was."""

import json
from collections import OrderedDict

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from rankfold import AdapterFileError, DenseSpec, RankfoldConfig, RouterSpec, SpecError
from rankfold.peft_plugin.layer import RankfoldLayer
from tests.integration.models import METHODS, adapted, bert, config_of, scores, train

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def state_of(model):
    """All that injection could change: keys, modules, attributes and hooks."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return list(model.state_dict()), [type(module) for module in model.modules()], sorted(vars(model)), hooks


REFUSED = {
    "unmatched_name": ({"target_modules": ["query", "valeu"]}, r"'valeu'. Did you mean 'value'"),
    "excluded_name_of_nothing": ({"exclude_modules": ["valeu"]}, r"'valeu'. Did you mean 'value'"),
    "excluded_names": (
        {"exclude_modules": ["value", "query"]},
        r"\['query', 'value'\] leaves no layer to adapt",
    ),
    "name_outside_of_blocks": (
        {"target_modules": ["query", "pooler.dense"], "layers_to_transform": [0]},
        r"'pooler.dense' is in no block",
    ),
    "pattern_of_ranks": ({"rank_pattern": {"kwery": 2}}, r"rank_pattern names 'kwery'"),
    "pattern_of_ranks_that_never_wins": (
        {"rank_pattern": {"query": 2, "layer.0.attention.self.query": 4}},
        r"rank_pattern names 'layer.0.attention.self.query' after a pattern that matches the same layers",
    ),
    "pattern_of_alphas": ({"alpha_pattern": {"layer.7": 2.0}}, r"alpha_pattern names 'layer.7'"),
    "block": ({"layers_to_transform": [0, 2]}, r"layers_to_transform names block 2"),
    "module_to_save": ({"modules_to_save": ["clasifier"]}, r"'clasifier'. Did you mean 'classifier'"),
    "kind": ({"target_modules": ["query", "LayerNorm"]}, r"LayerNorm.*is not supported.*exclude_modules"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_target_is_refused_and_the_model_left_as_it_was(case):
    options, message = REFUSED[case]
    config = config_of("relayed_lora", task_type=None, **options)
    model = bert()
    before = state_of(model)
    with pytest.raises(SpecError, match=message):
        peft.get_peft_model(model, config)
    assert state_of(model) == before
    assert torch.equal(scores(model), scores(bert()))

    carrying = adapted(config_of("relayed_lora", task_type=None), adapter_name="first")
    before = state_of(carrying)
    with pytest.raises(SpecError, match=message):
        carrying.add_adapter("second", config)
    assert state_of(carrying) == before
    assert set(carrying.peft_config) == {"first"}


@pytest.mark.parametrize("collection", [list, tuple, set, frozenset])
def test_names_of_layers_may_come_in_any_collection(collection):
    given, names = collection(["query", "value"]), {"query", "value"}
    config = config_of("lora", target_modules=given, exclude_modules=given)
    assert (config.target_modules, config.exclude_modules) == (names, names)
    assert given == collection(["query", "value"])


def test_excluded_layers_are_left_out():
    config = config_of("lora", task_type=None, exclude_modules=["value", "layer.1.attention.self.query"])
    model = adapted(config)
    assert [name for name, module in model.named_modules() if isinstance(module, RankfoldLayer)] == [
        "base_model.model.bert.encoder.layer.0.attention.self.query"
    ]


def test_nothing_matched_is_refused():
    model = bert()
    before = state_of(model)
    with pytest.raises(SpecError, match=r"unknown target module 'kwery'. Did you mean 'key'"):
        peft.get_peft_model(model, config_of("lora", target_modules=["kwery"]))
    with pytest.raises(SpecError, match="kwery"):
        peft.get_peft_model(model, config_of("lora", target_modules=".*kwery"))
    assert state_of(model) == before


def test_projection_that_kernels_of_mamba_read_without_a_call_is_refused_as_by_peft():
    size = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 16, "time_step_rank": 2}
    model = MambaForCausalLM(MambaConfig(**size))
    before = state_of(model)
    with pytest.raises(SpecError, match=r"'backbone.layers.0.mixer.out_proj' .* exclude_modules"):
        peft.get_peft_model(model, RankfoldConfig(r=2, target_modules="all-linear"))
    assert state_of(model) == before
    with pytest.raises(ValueError, match="out_proj"):
        peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["out_proj"]))
    chosen = RankfoldConfig(r=2, target_modules="all-linear", exclude_modules=["out_proj"])
    assert peft.get_peft_model(MambaForCausalLM(MambaConfig(**size)), chosen)


IMPOSSIBLE = {
    "bias": ({"bias": "all"}, "bias='all'"),
    "pattern_alone": ({"layers_pattern": "layer"}, "layers_pattern without layers_to_transform"),
    "index_of_pattern": (
        {"target_modules": ".*query", "layers_to_transform": 1},
        r"layers_to_transform has no effect on target_modules='\.\*query'",
    ),
    "pattern_without_alpha": (
        {"scaling": "learned", "alpha_pattern": {"query": 2.0}},
        "alpha_pattern has no effect with scaling='learned'",
    ),
    "kind_of_factor": ({"down": {"kind": "dence"}}, "down=.*describes no factor"),
    "field_of_factor": ({"down": {"kind": "relay", "kk": 3}}, "down=.*describes no factor"),
    "rank": ({"rank_pattern": {"query": 0}}, "r=0"),
    "task_type": ({"task_type": "SEQ_CLASS"}, "'SEQ_CLASS'. Did you mean 'SEQ_CLS'"),
    "text_for_a_number": ({"r": "8"}, "r='8' cannot be read; give a whole number"),
    "fraction": ({"r": 2.5}, "r=2.5 cannot be read"),
    "number_for_a_name": ({"scaling": 3}, "scaling=3 cannot be read"),
    "text_for_a_truth": ({"init_weights": "no"}, "init_weights='no' cannot be read"),
    "names_of_layers": ({"target_modules": [1, 2]}, r"target_modules=\[1, 2\] cannot be read; give names"),
    "expression": ({"target_modules": "(query"}, r"target_modules has '\(query', which is no regular"),
    "index": ({"layers_to_transform": "one"}, "layers_to_transform='one' cannot be read"),
    "fraction_of_index": ({"layers_to_transform": 1.5}, "layers_to_transform=1.5 cannot be read"),
    "ranks": ({"rank_pattern": 4}, "rank_pattern=4 cannot be read; give numbers by name"),
    "rank_as_text": ({"rank_pattern": {"query": "4"}}, "rank_pattern={'query': '4'} cannot be read"),
    "expression_of_ranks": ({"rank_pattern": {"(": 4}}, r"rank_pattern has '\(', which is no regular"),
    "name_to_save": ({"modules_to_save": "classifier"}, "modules_to_save='classifier' cannot be read"),
    "zeros": ({"down": DenseSpec("zeros")}, "start at zero"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_configuration_is_refused_before_a_model_is_there(case):
    options, message = IMPOSSIBLE[case]
    with pytest.raises(SpecError, match=message):
        RankfoldConfig(**{"target_modules": ["query"], **options})


@pytest.fixture
def saved_folder(method, tmp_path):
    """The folder of a trained adapter."""
    model = adapted(config_of(method))
    train(model)
    model.save_pretrained(tmp_path)
    return tmp_path


def load(folder, base=None):
    return peft.PeftModel.from_pretrained(bert() if base is None else base, folder).eval()


ONE_OF_EACH = pytest.mark.parametrize("method", ["lora", "relayed_lora", "tlora", "relay_in_one_pool"])


@ONE_OF_EACH
def test_cut_file_is_refused(method, saved_folder):
    data = (saved_folder / WEIGHTS).read_bytes()
    for length in (0, 4, len(data) // 2, len(data) - 1):
        (saved_folder / WEIGHTS).write_bytes(data[:length])
        with pytest.raises(Exception, match=r"(?i)safetensor|header|deserializ"):
            load(saved_folder)


@ONE_OF_EACH
def test_missing_and_surplus_tensors_are_refused(method, saved_folder):
    tensors = load_file(saved_folder / WEIGHTS)
    names = sorted(name for name in tensors if ".rankfold_" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != names[0]}, saved_folder / WEIGHTS)
    with pytest.raises(AdapterFileError, match=f"lacks 1 of its {len(names)} tensors"):
        load(saved_folder)
    surplus = names[0].replace("layer.0", "layer.7")
    save_file({**tensors, surplus: torch.zeros(3)}, saved_folder / WEIGHTS)
    with pytest.raises(AdapterFileError, match="holds 1 tensors that have no place"):
        load(saved_folder)


@ONE_OF_EACH
def test_other_base_of_the_same_shape_is_refused(method, saved_folder):
    base = bert(seed=5)
    before = state_of(base)
    with pytest.raises(AdapterFileError, match="trained on another base model"):
        load(saved_folder, base)
    assert state_of(base) == before


@ONE_OF_EACH
def test_other_base_of_another_shape_is_refused(method, saved_folder):
    for options in ({"hidden_size": 40}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}):
        with pytest.raises((AdapterFileError, SpecError, RuntimeError)):
            load(saved_folder, bert(**options))


@ONE_OF_EACH
def test_rounded_version_of_the_same_base_is_accepted(method, saved_folder):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        load(saved_folder, bert().to(dtype))


@ONE_OF_EACH
def test_fingerprint_may_be_removed_on_purpose(method, saved_folder):
    config = json.loads((saved_folder / CONFIG).read_text())
    assert config.pop("base_fingerprint")
    (saved_folder / CONFIG).write_text(json.dumps(config))
    load(saved_folder, bert(seed=5))


@pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged:UserWarning")
@ONE_OF_EACH
def test_adapter_is_loaded_while_another_one_is_merged(method, saved_folder):
    model = adapted(config_of("lora", alpha=64), adapter_name="first")
    model.merge_adapter()
    model.load_adapter(saved_folder, "second")


@pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged:UserWarning")
@ONE_OF_EACH
def test_adapter_that_was_added_while_another_one_was_merged_is_loaded_on_the_base(method, tmp_path):
    model = adapted(config_of("lora", alpha=64), adapter_name="first")
    model.merge_adapter()
    model.add_adapter("second", config_of(method))
    model.unmerge_adapter()
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    load(tmp_path / "second")


def test_data_parallel_is_refused_with_what_to_start_instead():
    layer = next(
        each for each in adapted(config_of("share_lora")).modules() if isinstance(each, RankfoldLayer)
    )
    with pytest.raises(SpecError, match="with torchrun"):
        layer._replicate_for_data_parallel()


def test_damaged_fingerprint_is_refused(tmp_path):
    model = adapted(config_of("lora"))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    for damaged in ("float:xyz", "float:", "other:0000", ""):
        (tmp_path / CONFIG).write_text(json.dumps({**config, "base_fingerprint": damaged}))
        with pytest.raises(AdapterFileError, match="damaged"):
            load(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_model_on_the_meta_device_takes_every_method(method):
    with torch.device("meta"):
        model = adapted(config_of(method), bert())
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("scope", ["layer", "mlp"])
def test_heads_for_mlps_are_refused_where_no_mlp_is_adapted(scope):
    config = RankfoldConfig(
        heads=2, heads_in="mlp", router=RouterSpec(scope=scope), target_modules=["query", "value"]
    )
    with pytest.raises(SpecError, match=r"heads_in='mlp' found no MLP .* heads_in='all'"):
        peft.get_peft_model(bert(), config)


def test_base_weights_beyond_half_precision_are_recognised(tmp_path):
    def base():
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(one=nn.Linear(6, 5)))
        with torch.no_grad():
            model.one.weight.mul_(1e7)
        return model

    config = RankfoldConfig(r=2, target_modules=["one"])
    peft.get_peft_model(base(), config).save_pretrained(tmp_path)
    peft.PeftModel.from_pretrained(base(), tmp_path)


@pytest.mark.parametrize("name", ["value", "encoder", "0", "weight", "bert", "rankfold_up"])
def test_adapter_beside_others_with_the_name_of_a_part_of_the_model_is_refused(name):
    model = adapted(config_of("lora"))
    before = state_of(model)
    with pytest.raises(SpecError, match=f"'{name}' is also that of a part of the model"):
        model.add_adapter(name, config_of("lora", seed=7))
    with pytest.raises(SpecError, match=f"'{name}' is also that of a part of the model"):
        adapted(config_of("lora"), adapter_name=name).add_adapter("other", config_of("lora"))
    assert list(model.peft_config) == ["default"]
    assert state_of(model) == before


@pytest.mark.parametrize("method", METHODS)
def test_adapters_whose_names_hold_one_another_are_saved_whole(method, tmp_path):
    model = adapted(config_of(method), adapter_name="11")
    names = ["11", "111", "val", "query_value"]
    for name in names[1:]:
        model.add_adapter(name, config_of(method))
    model.save_pretrained(tmp_path)
    adapted(config_of(method)).save_pretrained(tmp_path / "alone")
    expected = load_file(tmp_path / "alone" / WEIGHTS).keys()
    for name in names:
        assert load_file(tmp_path / name / WEIGHTS).keys() == expected
