"""A model with adapters can be moved, copied and pickled like any other."""

import copy
import pickle

import pytest
import torch

from tests.integration.models import METHODS, adapted, bert, config_of, learned, scores, train
from tests.support.tolerance import assert_close

ALL = pytest.mark.parametrize("method", METHODS)


def _deepcopy(model, _path):
    return copy.deepcopy(model)


def _pickle(model, _path):
    return pickle.loads(pickle.dumps(model))


def _file(model, path):
    torch.save(model, path / "model.pt")
    return torch.load(path / "model.pt", weights_only=False)


@ALL
@pytest.mark.parametrize("copied", [_deepcopy, _pickle, _file])
def test_copy_gives_the_same_scores_and_is_independent(method, copied, tmp_path):
    model = adapted(config_of(method))
    before = scores(model)
    twin = copied(model, tmp_path)
    assert torch.equal(scores(twin), before)
    train(twin)
    assert not torch.equal(scores(twin), before)
    assert torch.equal(scores(model), before)
    assert len(learned(twin)) == len(learned(model))
    shared = {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    assert not shared


@ALL
def test_model_moved_to_float64_and_back_gives_the_same_scores(method):
    model = adapted(config_of(method))
    before = scores(model)
    model.to(torch.float64)
    assert scores(model).dtype == torch.float64
    assert torch.allclose(scores(model).float(), before, atol=1e-5)
    model.to(torch.float32)
    assert torch.equal(scores(model), before)


@ALL
def test_model_moved_to_bfloat16_and_back_keeps_what_bfloat16_keeps(method):
    model = adapted(config_of(method))
    rounded = adapted(config_of(method))
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    model.to(torch.bfloat16)
    assert scores(model).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in learned(model).values()} == {torch.bfloat16}
    model.to(torch.float32)
    assert torch.equal(scores(model), scores(rounded))


@pytest.mark.parametrize("method", ["tlora", "lora_fa", "seeded_down_relayed_up"])
def test_frozen_factors_stay_exact_on_a_bfloat16_base(method):
    def frozen(model):
        layer = model.base_model.model.get_submodule("bert.encoder.layer.0.attention.self.query")
        return layer.rankfold_adapters["default"].down()

    on_bfloat16 = adapted(config_of(method), bert().to(torch.bfloat16), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in learned(on_bfloat16).values()} == {torch.bfloat16}
    assert frozen(on_bfloat16).dtype == torch.float32
    assert torch.equal(frozen(on_bfloat16), frozen(adapted(config_of(method))))


@ALL
def test_shared_factor_stays_one_object_after_every_move(method):
    model = adapted(config_of(method))
    count = len(learned(model))
    model.to(torch.float64).to(torch.bfloat16).float()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    adapters = [
        module.rankfold_adapters["default"]
        for module in twin.modules()
        if hasattr(module, "rankfold_adapters")
    ]
    owned = {id(parameter) for parameter in learned(twin).values()}
    assert {id(parameter) for adapter in adapters for parameter in adapter.parameters()} == owned
    assert len(owned) == count


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("copied", [_deepcopy, _pickle])
@pytest.mark.parametrize("method", ["tlora", "lora_fa", "seeded_down_relayed_up", "nora"])
def test_copy_of_a_model_can_be_compiled(method, copied, tmp_path):
    model = adapted(config_of(method), bert(num_hidden_layers=1))
    expected = scores(model)
    torch.compiler.reset()
    compiled = torch.compile(copied(model, tmp_path), fullgraph=True, backend="aot_eager")
    assert_close(scores(compiled), expected)
