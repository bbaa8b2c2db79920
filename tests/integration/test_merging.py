"""Merging puts the adapters into the base weights; unmerging brings back the base, bit for bit."""

from collections import OrderedDict
from contextlib import nullcontext

import peft
import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import rankfold
from rankfold import RankfoldWarning, SpecError
from tests.integration.models import (
    FOLDABLE,
    PICTURE_TARGETS,
    adapted,
    bert,
    config_of,
    gpt2,
    picture,
    scores,
    tied,
)
from tests.support.tolerance import assert_close, relative_rms

ALL = pytest.mark.parametrize("method", FOLDABLE)
BASES = {
    "linear": (bert, {}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_fc"], "task_type": "CAUSAL_LM"}),
    "picture": (picture, {"target_modules": PICTURE_TARGETS, "task_type": None}),
    "tied": (tied, {"target_modules": ["tokens", "head"], "task_type": None}),
    "tied, one adapted": (tied, {"target_modules": ["tokens"], "task_type": None}),
}


def two_adapters(method, base=bert):
    model = adapted(config_of(method, task_type=None), base(), adapter_name="first")
    model.add_adapter("second", config_of("tlora_plus", seed=7, task_type=None))
    model.base_model.set_adapter(["first", "second"])
    return model.eval()


def base_weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items() if ".rankfold_" not in name}


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@ALL
@pytest.mark.parametrize("base", BASES)
def test_merged_model_gives_the_same_scores_and_unmerging_restores_the_base(method, base):
    make, options = BASES[base]
    model = adapted(config_of(method, **options), make())
    before, expected = base_weights(model), scores(model)
    model.merge_adapter()
    assert_close(scores(model), expected)
    assert not all(torch.equal(base_weights(model)[name], before[name]) for name in before)
    model.unmerge_adapter()
    assert_same(base_weights(model), before)
    assert torch.equal(scores(model), expected)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_unmerging_two_adapters_restores_the_base(method, dtype):
    model = two_adapters(method, lambda: bert().to(dtype))
    before, expected = base_weights(model), scores(model)
    with nullcontext() if dtype is torch.float32 else pytest.warns(RankfoldWarning, match="rounded away"):
        model.merge_adapter()
    assert_close(scores(model), expected)
    model.unmerge_adapter()
    assert_same(base_weights(model), before)
    assert torch.equal(scores(model), expected)


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_merging_into_bfloat16_says_how_much_of_the_change_it_rounds_away(strength):
    model = adapted(config_of("lora", task_type=None), bert().to(torch.bfloat16))
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "merge_drift")}
    exact = {}
    for name, layer in layers.items():
        layer.set_scale("default", strength)
        exact[name] = layer.get_base_weight().float(), layer.get_delta_weight("default")
    with pytest.warns(RankfoldWarning, match="rounded away") as warned:
        model.merge_adapter()
    lost = {
        name: relative_rms(layers[name].get_base_weight().float() - weight, delta)
        for name, (weight, delta) in exact.items()
    }
    worst = max(lost, key=lost.__getitem__)
    assert f"{lost[worst]:.2%} of the change of '{worst.removeprefix('base_model.model.')}'" in str(
        warned[0].message
    )


@pytest.mark.parametrize("first", ["tokens", "head"])
def test_tied_weights_are_merged_apart_and_tied_again_in_any_order(first):
    model = adapted(config_of("lora", target_modules=["tokens", "head"], task_type=None), tied())
    tokens, head = model.base_model.model.tokens, model.base_model.model.head
    weight, expected = tokens.get_base_weight().clone(), scores(model)
    for layer in (tokens, head) if first == "tokens" else (head, tokens):
        layer.merge()
        assert_close(scores(model), expected)
    for layer in (tokens, head):
        assert torch.equal(layer.original_weight(), weight)
        layer.unmerge()
        assert_close(scores(model), expected)
    assert tokens.base_layer.weight is head.base_layer.weight
    assert torch.equal(tokens.get_base_weight(), weight)


@pytest.mark.filterwarnings("ignore:merging into a base of low precision:rankfold.RankfoldWarning")
@pytest.mark.parametrize("base", ["linear", "tied"])
def test_model_that_is_cast_while_merged_comes_back_in_its_new_dtype(base):
    make, options = BASES[base]
    model, expected = (adapted(config_of("relayed_lora", **options), make()) for _ in range(2))
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    expected.to(torch.bfloat16)
    assert_same(base_weights(model), base_weights(expected))
    assert torch.equal(scores(model), scores(expected))


@ALL
def test_merging_one_after_the_other_is_merging_both(method):
    together, one_by_one = two_adapters(method), two_adapters(method)
    before = base_weights(one_by_one)
    together.merge_adapter(["first", "second"])
    one_by_one.merge_adapter(["first"])
    with pytest.warns(UserWarning, match="merged first"):
        one_by_one.merge_adapter(["second"])
    assert torch.equal(scores(one_by_one), scores(together))
    one_by_one.unmerge_adapter()
    assert_same(base_weights(one_by_one), before)


@ALL
def test_merge_and_unload_leaves_a_plain_model(method):
    model = adapted(config_of(method))
    expected = scores(model)
    plain = model.merge_and_unload(safe_merge=True)
    assert_close(scores(plain), expected)
    assert plain.state_dict().keys() == bert().state_dict().keys()
    assert {type(module) for module in plain.modules()} == {type(module) for module in bert().modules()}
    assert hooks_on(plain) == 0


@ALL
def test_unload_gives_back_the_base(method):
    plain = adapted(config_of(method, task_type=None)).unload()
    assert_same(plain.state_dict(), bert().state_dict())
    assert torch.equal(scores(plain), scores(bert()))
    assert hooks_on(plain) == 0


@pytest.mark.parametrize("method", FOLDABLE)
def test_unload_takes_merged_adapters_out(method):
    model = adapted(config_of(method, task_type=None))
    model.merge_adapter()
    assert_same(model.unload().state_dict(), bert().state_dict())


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@ALL
def test_disabling_equals_the_base_also_when_merged(method):
    model = adapted(config_of(method, task_type=None))
    expected = scores(bert())
    with model.disable_adapter():
        assert torch.equal(scores(model), expected)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(scores(model), expected)


@ALL
def test_merging_some_adapters_leaves_the_others_out(method):
    model = two_adapters(method)
    model.base_model.set_adapter(["first"])
    expected = scores(model)
    model.base_model.set_adapter(["first", "second"])
    plain = model.merge_and_unload(adapter_names=["first"])
    assert_close(scores(plain), expected)


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_safe_merge_refuses_what_is_not_finite_and_leaves_all_layers_as_they_were(merge):
    model = adapted(config_of("lora", task_type=None))
    layers = [module for module in model.modules() if hasattr(module, "merge_drift")]
    with torch.no_grad():
        layers[-1].rankfold_up["default"].weight[0, 0] = float("nan")
    before = base_weights(model)
    with pytest.raises(ValueError, match="adapter default seems to be broken"):
        getattr(model, merge)(safe_merge=True)
    assert len(layers) > 1
    assert not any(layer.merged for layer in layers)
    assert_same(base_weights(model), before)


def _weight_normed(layer):
    nn.utils.parametrizations.weight_norm(layer)


def _weight_normed_as_of_old(layer):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)


def _prune(layer):
    nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)


@pytest.mark.parametrize("compute", [_weight_normed, _weight_normed_as_of_old, _prune])
def test_weight_that_is_computed_at_every_pass_is_adapted_but_not_merged_into(compute):
    base = nn.Sequential(OrderedDict(one=nn.Linear(6, 5), other=nn.Linear(5, 4)))
    compute(base.one)
    x = torch.randn(3, 6)
    model = peft.get_peft_model(base, rankfold.config("lora", r=2, target_modules=["one", "other"]))
    model(x).sum().backward()
    assert model.base_model.model.one.rankfold_up["default"].weight.grad.abs().sum() > 0
    with pytest.raises(SpecError, match=r"is computed at every pass, .* remove that from the base model"):
        model.merge_adapter()
    assert not model.base_model.model.other.merged


def test_strength_of_an_adapter_takes_part_in_merging():
    model = two_adapters("lora")
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("first", 0.5)
            module.set_scale("second", 0.0)
    expected = scores(model)
    model.merge_adapter()
    assert_close(scores(model), expected)


def test_embedding_that_multiplies_what_it_looks_up_is_merged_right():
    class ScaledEmbedding(nn.Embedding):
        """As Gemma's: the embedding times a factor."""

        def __init__(self) -> None:
            super().__init__(64, 16)
            self.embed_scale = torch.tensor(4.0)

        def forward(self, tokens):
            return super().forward(tokens) * self.embed_scale

    base = picture()
    base.tokens = ScaledEmbedding()
    model = adapted(config_of("lora", target_modules=["tokens"], task_type=None), base)
    expected = scores(model)
    model.merge_adapter()
    assert_close(scores(model), expected)


def test_name_of_no_adapter_is_refused_with_the_nearest():
    model = adapted(config_of("lora"), adapter_name="first")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(SpecError, match=r"unknown adapter 'frist'\. Did you mean 'first'\?"):
            merge(adapter_names=["frist"])
    assert not model.base_model.model.bert.encoder.layer[0].attention.self.query.merged
