"""What others do to the layers of a model with adapters is right, or refused with the name of the layer."""

import copy
import io

import peft
import pytest
import torch
from torch import nn
from torch.nn.utils import fusion, parametrizations, parametrize

import rankfold
from rankfold.errors import SpecError
from rankfold.presets import discover
from tests.integration.models import gpt2, ids
from tests.support.picture_models import DENOISERS
from tests.support.tolerance import assert_close


def noise(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 16)).sample


def adapted(base, targets, **options):
    config = rankfold.config("lora", r=2, alpha=16.0, target_modules=targets, init_weights=False, **options)
    return peft.get_peft_model(base, config).eval()


def test_fusing_projections_with_adapters_is_refused_until_they_are_merged():
    model = adapted(DENOISERS["sd15"]().eval(), ["to_q", "to_k", "to_v"])
    before = noise(model)
    for subject in (model, copy.deepcopy(model)):
        with pytest.raises(SpecError, match=r"to_q.*attn1.*merge_and_unload"):
            subject.get_base_model().fuse_qkv_projections()
    merged = model.merge_and_unload()
    merged.fuse_qkv_projections()
    assert_close(noise(merged), before)


@pytest.mark.parametrize("family", sorted(DENOISERS))
def test_fusing_is_refused_in_every_family_of_denoisers(family):
    model = adapted(DENOISERS[family]().eval(), ["to_q", "to_v"])
    fuse = getattr(model.get_base_model(), "fuse_qkv_projections", None)
    if fuse is None:
        pytest.skip("has no fused projections")
    with pytest.raises(SpecError, match="to_q, to_v"):
        fuse()


def test_adapters_on_fused_projections_are_refused_until_they_are_parted():
    base = DENOISERS["sd15"]().eval()
    base.fuse_qkv_projections()
    with pytest.raises(SpecError, match=r"to_q.*unfuse_qkv_projections"):
        adapted(base, ["to_q", "to_v"])
    base.unfuse_qkv_projections()
    model = adapted(base, ["to_q", "to_v"])
    with model.disable_adapter():
        without = noise(model)
    assert not torch.equal(noise(model), without)


def saved_and_read(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("is_merged", [True, False])
def test_weights_with_merged_adapters_are_not_loaded_where_the_adapters_act(is_merged):
    model, other = (adapted(gpt2(), ["c_attn"]) for _ in range(2))
    (model if is_merged else other).merge_adapter()
    state = saved_and_read(model.state_dict())
    with pytest.raises(SpecError, match=r"c_attn'.*merged adapters.*unmerge_adapter"):
        other.load_state_dict(state)
    (model if is_merged else other).unmerge_adapter()
    other.load_state_dict(saved_and_read(model.state_dict()))
    assert torch.equal(other(ids()).logits, model(ids()).logits)


def test_merged_weights_are_known_by_their_values_where_a_file_does_not_tell():
    base = gpt2()
    model, other = (adapted(copy.deepcopy(base), ["c_attn"], seed=seed) for seed in (0, 1))
    unmerged = {key: value.clone() for key, value in model.state_dict().items()}
    model.merge_adapter()
    with pytest.raises(SpecError, match=r"c_attn'.*act twice"):
        other.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    other.load_state_dict({key: value + 1e-3 for key, value in unmerged.items()})
    other.load_state_dict(unmerged)
    model.unmerge_adapter()
    assert torch.equal(other(ids()).logits, model(ids()).logits)


@pytest.mark.filterwarnings("ignore:k=8 saves nothing")
@pytest.mark.parametrize("method", discover())
def test_a_fine_tuned_base_is_loaded_under_adapters_of_every_method(method):
    config = rankfold.config(method, init_weights=False)
    model = peft.get_peft_model(gpt2(), config)
    state = {key: value + 1e-3 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Block(nn.Module):
    """Two layers and a norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.second(self.first(x).tanh()))


class Doubled(nn.Module):
    """A parametrization: twice the parameter."""

    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
        parametrizations.weight_norm,
        parametrizations.orthogonal,
    ],
    ids=["doubled", "weight norm", "orthogonal"],
)
def test_a_parametrized_base_layer_keeps_the_change_of_its_adapter(change):
    torch.manual_seed(0)
    model, x = adapted(Block(), ["first"]), torch.randn(3, 6)
    layer = model.base_model.model.first
    change(layer.base_layer)
    delta = x @ layer.get_delta_weight("default").T
    assert_close(layer(x), layer.base_layer(x) + delta)
    with pytest.raises(SpecError, match="weight norm"):
        model.merge_adapter()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: fusion.fuse_linear_bn_eval(model.second, model.norm),
        lambda model: parametrize.register_parametrization(model.second, "weight", Doubled()),
        lambda model: nn.utils.weight_norm(model.second),
        lambda model: nn.utils.spectral_norm(model.second),
        lambda model: setattr(model.second, "weight", model.first.weight),
    ],
    ids=["fused", "parametrized", "weight norm", "spectral norm", "tied"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_writes_the_weight_of_an_adapted_layer_is_refused(change):
    model, x = adapted(Block(), ["second"]), torch.randn(3, 6)
    before = model(x)
    with pytest.raises(Exception, match="weight"):
        change(model.base_model.model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_and_a_copy_of_a_layer_keep_its_adapter(dtype):
    torch.manual_seed(0)
    model, x = adapted(Block(), ["first", "second"]), torch.randn(3, 6)
    expected = model(x)
    worst = torch.float32 if dtype is torch.float64 else dtype
    assert_close(copy.deepcopy(model).to(dtype)(x.to(dtype)).float(), expected, dtype=worst)
    layer = model.base_model.model.second
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
