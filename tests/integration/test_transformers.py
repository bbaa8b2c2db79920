"""transformers' own methods for adapters, without a PeftModel."""

import pytest
import torch
import transformers.integrations.peft as integration

from tests.integration.models import METHODS, adapted, bert, config_of, learned, scores


def _refusal() -> str:
    """Return why transformers adds no adapter of any method; empty if it does."""
    try:
        integration.check_peft_version(min_version=integration.MIN_PEFT_VERSION)
    except ValueError as error:
        return str(error)
    return ""


pytestmark = [
    # PEFT warns of every second adapter that is added without a PeftModel.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    # transformers 5.24 takes PEFT 0.22 and newer, which came later than itself.
    pytest.mark.skipif(bool(_refusal()), reason=_refusal()),
]
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
