"""Several adapters on one model: which one acts, which one is trained, which one is deleted."""

import warnings

import peft
import pytest
import torch

from tests.integration.models import METHODS, adapted, bert, config_of, learned, scores, train

ALL = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def model(method):
    """A model with the method under test and, on other layers, of another rank, ShareLoRA."""
    model = adapted(config_of(method, task_type=None), adapter_name="first")
    model.add_adapter(
        "second", config_of("share_lora", r=3, target_modules=["query", "dense"], task_type=None)
    )
    return model.eval()


def trained_names(model):
    return {
        name.split(".rankfold_")[1].split(".")[1] for name, p in learned(model).items() if p.requires_grad
    }


@ALL
def test_active_adapter_is_the_one_that_acts_and_is_trained(method, model):
    alone = scores(adapted(config_of(method, task_type=None), adapter_name="first"))
    assert torch.equal(scores(model), alone)
    model.set_adapter("second")
    assert trained_names(model) == {"second"}
    assert not torch.equal(scores(model), alone)
    model.set_adapter("first")
    assert trained_names(model) == {"first"}
    assert torch.equal(scores(model), alone)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".rankfold_" not in name)


@ALL
def test_adapters_set_as_a_list_act_together(method, model):
    model.base_model.set_adapter(["first", "second"])
    together = scores(model)
    assert trained_names(model) == {"first", "second"}
    with model.disable_adapter():
        assert torch.equal(scores(model), scores(bert()))
        assert not trained_names(model)
    assert torch.equal(scores(model), together)
    model.base_model.set_adapter(["second", "first"])
    assert torch.allclose(scores(model), together, atol=1e-5)


@ALL
def test_adapters_set_for_inference_are_not_trained(method, model):
    model.base_model.set_adapter(["first", "second"], inference_mode=True)
    assert not trained_names(model)


@ALL
def test_training_one_adapter_leaves_the_other(method, model):
    before = {name: parameter.clone() for name, parameter in learned(model).items()}
    train(model)
    for name, parameter in learned(model).items():
        assert torch.equal(parameter, before[name]) == (".second" in name), name


@ALL
def test_deleting_an_adapter_that_owns_shared_factors_leaves_the_others(method, model):
    model.set_adapter("second")
    expected = scores(model)
    model.delete_adapter("first")
    assert torch.equal(scores(model), expected)
    assert not any(".first" in name for name in model.state_dict())
    model.add_adapter("first", config_of(method, task_type=None))
    model.set_adapter("first")
    assert torch.equal(
        scores(model.eval()), scores(adapted(config_of(method, task_type=None), adapter_name="first"))
    )


@ALL
def test_deleting_every_adapter_leaves_the_base(method, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.delete_adapter("first")
        model.delete_adapter("second")
    base = model.base_model.model
    assert torch.equal(scores(base), scores(bert()))
    assert not learned(base)
    assert not base._forward_hooks
    assert not base._forward_pre_hooks


@ALL
def test_two_adapters_of_one_spec_differ_but_share_frozen_factors(method):
    model = adapted(config_of(method, task_type=None), adapter_name="first")
    model.add_adapter("second", config_of(method, task_type=None))
    layer = model.base_model.model.bert.encoder.layer[1].attention.self.value
    first, second = (layer.rankfold_adapters[name] for name in ("first", "second"))
    for role in ("down", "up"):
        frozen = getattr(first, role).is_frozen
        assert torch.equal(getattr(first, role)(), getattr(second, role)()) == frozen
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_adapter_name_is_taken_once():
    model = adapted(config_of("lora"), adapter_name="first")
    keys = model.state_dict().keys()
    with pytest.raises(ValueError, match="first"):
        model.add_adapter("first", config_of("lora"))
    assert model.state_dict().keys() == keys


def test_unknown_adapter_cannot_be_chosen_or_deleted():
    model = adapted(config_of("lora"))
    with pytest.raises(ValueError, match="third"):
        model.set_adapter("third")
    with pytest.raises(ValueError, match="third"):
        model.delete_adapter("third")


def test_merged_adapter_cannot_be_deleted():
    model = adapted(config_of("lora"))
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("default")


@ALL
def test_second_adapter_for_all_linear_layers_goes_where_the_first_went(method, tmp_path):
    model = adapted(config_of(method, target_modules="all-linear"), adapter_name="first")
    model.add_adapter("second", config_of("lora", target_modules="all-linear"))
    assert model.peft_config["first"].target_modules == model.peft_config["second"].target_modules
    # Six in each of two blocks, and the pooler; the classifier is saved whole.
    assert len(model.peft_config["first"].target_modules) == 13
    model.set_adapter("second")
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(bert(), tmp_path / "second").eval()
    assert torch.equal(scores(loaded), scores(model.eval()))


def test_status_of_the_model_names_the_method():
    status = adapted(config_of("lora")).get_model_status()
    assert status.peft_types == {"default": "RANKFOLD"}
    assert status.available_adapters == status.active_adapters == ["default"]
    assert status.requires_grad == {"default": True}


def test_layers_say_what_they_are():
    layer = adapted(config_of("lora")).base_model.model.bert.encoder.layer[0].attention.self.query
    text = repr(layer)
    assert text.startswith("rankfold.RankfoldLinear")
    assert "in_features=32" in text
    assert "rankfold_down" in text
    assert (layer.in_features, layer.out_features) == (32, 32)


def test_model_with_another_method_of_peft_is_refused():
    # Its layer comes after one that is free.
    model = peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["value"]))
    keys = set(model.state_dict())
    with (
        pytest.raises(ValueError, match="another PEFT method"),
        pytest.warns(UserWarning, match="peft_config"),
    ):
        peft.inject_adapter_in_model(
            config_of("lora", target_modules=["query", "value"]), model.get_base_model(), "second"
        )
    assert set(model.state_dict()) == keys
