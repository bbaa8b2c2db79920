"""transformers' own methods for adapters, without a PeftModel."""

import pytest
import torch

from tests.integration.models import METHODS, adapted, bert, config_of, learned, scores

# PEFT warns of every second adapter that is added without a PeftModel.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
ALL = pytest.mark.parametrize("method", METHODS)


def options_of(method, **options):
    return config_of(method, task_type=None, **options)


@ALL
def test_added_adapter_equals_the_one_of_get_peft_model(method):
    model = bert()
    model.add_adapter(options_of(method), adapter_name="first")
    assert torch.equal(scores(model.eval()), scores(adapted(options_of(method), adapter_name="first")))
    assert all(parameter.requires_grad for parameter in learned(model).values())
    model.disable_adapters()
    assert torch.equal(scores(model), scores(bert()))
    model.enable_adapters()
    assert not torch.equal(scores(model), scores(bert()))


@ALL
def test_adapter_is_switched_and_deleted(method):
    model = bert()
    model.add_adapter(options_of(method), adapter_name="first")
    first = scores(model)
    model.add_adapter(options_of("tlora_plus", seed=5), adapter_name="second")
    assert model.active_adapters() == ["second"]
    model.set_adapter("first")
    assert torch.equal(scores(model), first)
    model.delete_adapter("second")
    assert torch.equal(scores(model), first)
    assert not any(".second" in name for name in model.state_dict())


@ALL
def test_saved_adapter_is_loaded(method, tmp_path):
    model = bert()
    model.add_adapter(options_of(method), adapter_name="first")
    model.save_pretrained(tmp_path)
    loaded = bert()
    loaded.load_adapter(str(tmp_path), adapter_name="other")
    assert torch.equal(scores(loaded.eval()), scores(model))


@ALL
def test_adapter_saved_by_peft_is_loaded(method, tmp_path):
    model = adapted(options_of(method))
    model.save_pretrained(tmp_path)
    loaded = bert()
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(scores(loaded.eval()), scores(model))


@pytest.mark.parametrize("method", ["relayed_lora", "relay_in_one_pool"])
def test_deleting_every_adapter_leaves_no_hooks(method):
    model = bert()
    model.add_adapter(options_of(method), adapter_name="first")
    model.add_adapter(options_of(method), adapter_name="second")
    model.delete_adapter(["first", "second"])
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert torch.equal(scores(model), scores(bert()))
