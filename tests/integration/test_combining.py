"""What PEFT's functions for LoRA do with several adapters, and what they are here for every method."""

import peft
import pytest
import torch
from peft.helpers import rescale_adapter_scale as peft_rescale
from peft.utils.hotswap import hotswap_adapter as peft_hotswap

import rankfold
from rankfold import AdapterFileError, NotExactError, SpecError
from tests.integration.models import (
    FOLDABLE,
    METHODS,
    PICTURE_TARGETS,
    adapted,
    bert,
    config_of,
    picture,
    scores,
)
from tests.support.tolerance import assert_close

BASES = {"bert": (bert, None), "picture": (picture, PICTURE_TARGETS)}


def two_adapters(method, base="bert"):
    """A model with an adapter of a method, and a LoRA on fewer layers and of another rank."""
    make, targets = BASES[base]
    targets = sorted(targets or config_of(method).target_modules)
    model = adapted(config_of(method, task_type=None, target_modules=targets), make(), adapter_name="first")
    other = config_of("lora", r=3, seed=7, task_type=None, target_modules=targets[:1])
    model.add_adapter("second", other)
    return model.eval()


def weights_of(model):
    return {
        name: layer.get_base_weight().clone()
        for name, layer in model.named_modules()
        if hasattr(layer, "rankfold_adapters")
    }


def merged_weights(model, names):
    """The base weights with some adapters merged, each by itself."""
    plain, changes = weights_of(model), []
    for name in names:
        model.merge_adapter([name])
        merged = weights_of(model)
        changes.append({key: merged[key] - plain[key] for key in plain})
        model.unmerge_adapter()
    return changes


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", FOLDABLE)
def test_weighted_sum_is_exact(method, base, tmp_path):
    model = two_adapters(method, base)
    plain = {name: module for name, module in weights_of(model).items()}
    model.add_weighted_adapter(["first", "second"], [0.7, -0.4], "sum")
    layers = dict(model.named_modules())
    for name in plain:
        adapters = layers[name].rankfold_adapters
        expected = 0.7 * adapters["first"].delta_weight()
        if "second" in adapters:
            expected = expected - 0.4 * adapters["second"].delta_weight()
        assert_close(adapters["sum"].delta_weight(), expected, what=name)
    assert model.active_adapters == ["first"]
    model.set_adapter("sum")
    summed = scores(model)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = peft.PeftModel.from_pretrained(BASES[base][0](), tmp_path / "sum").eval()
    assert torch.equal(scores(loaded), summed)


def test_weighted_sum_by_svd_is_the_nearest_of_its_rank():
    model = two_adapters("lora")
    model.add_weighted_adapter(["first", "second"], [1.0, 2.0], "full", "svd", svd_rank=7)
    model.add_weighted_adapter(["first", "second"], [1.0, 2.0], "exact")
    model.add_weighted_adapter(["first", "second"], [1.0, 2.0], "thin", "svd", svd_rank=2)
    for layer in model.modules():
        adapters = getattr(layer, "rankfold_adapters", {})
        if adapters:
            exact = adapters["exact"].delta_weight()
            assert_close(adapters["full"].delta_weight(), exact)
            u, s, v = torch.linalg.svd(exact)
            assert_close(adapters["thin"].delta_weight(), (u[:, :2] * s[:2]) @ v[:2])


IMPOSSIBLE = {
    "unknown": (["first", "third"], [1, 1], {}, SpecError, "unknown adapter 'third'"),
    "twice": (["first", "first"], [1, 1], {}, SpecError, "is no sum"),
    "weights": (["first", "second"], [1], {}, SpecError, "one weight for each"),
    "ties": (
        ["first", "second"],
        [1, 1],
        {"combination_type": "ties"},
        NotExactError,
        "'cat', which is exact",
    ),
    "rank": (["first", "second"], [1, 1], {"svd_rank": 3}, SpecError, "svd_rank has no effect"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_sum_is_refused_and_leaves_the_model(case):
    model = two_adapters("lora")
    names, weights, options, error, message = IMPOSSIBLE[case]
    with pytest.raises(error, match=message):
        model.add_weighted_adapter(names, weights, "sum", **options)
    assert list(model.peft_config) == ["first", "second"]


def test_sum_of_adapters_with_routers_heads_or_a_name_that_is_taken_is_refused():
    with pytest.raises(NotExactError, match="gates depend on the input"):
        two_adapters("hydra_lora").add_weighted_adapter(["first", "second"], [1, 1], "sum")
    with pytest.raises(SpecError, match="'classifier' of its own, which cannot be added"):
        adapted(config_of("lora")).add_weighted_adapter(["default"], [1], "sum")
    with pytest.raises(SpecError, match="'second' is an adapter of this model already"):
        two_adapters("lora").add_weighted_adapter(["first"], [1], "second")


@pytest.mark.parametrize("method", METHODS)
def test_rescaled_adapters_act_as_rescaled_and_come_back(method):
    model = adapted(config_of(method, task_type=None))
    before = scores(model)
    with rankfold.rescale_adapter_scale(model, 0.0):
        assert torch.equal(scores(model), scores(bert()))
    with rankfold.rescale_adapter_scale(model, 0.5):
        half = scores(model)
    assert not torch.equal(half, before)
    assert torch.equal(scores(model), before)
    if method in FOLDABLE:
        with rankfold.rescale_adapter_scale(model, 0.5):
            merged = model.merge_and_unload()
        assert_close(scores(merged), half)


def test_rescaling_a_model_without_adapters_is_refused():
    with (
        pytest.raises(SpecError, match="no adapter of rankfold"),
        rankfold.rescale_adapter_scale(bert(), 0.5),
    ):
        pass


def test_merged_adapters_are_not_rescaled_and_rescaled_ones_not_merged():
    model = adapted(config_of("lora", task_type=None))
    before = scores(model)
    with rankfold.rescale_adapter_scale(model, 0.5), pytest.raises(SpecError, match="outside of it"):
        model.merge_adapter()
    assert torch.equal(scores(model), before)
    model.merge_adapter()
    with (
        pytest.raises(SpecError, match="unmerge it first"),
        rankfold.rescale_adapter_scale(model, 0.5),
    ):
        pass


# Their frozen factors are drawn from the seed, and only adapters with the same ones are exchanged.
DRAWN = ("tlora", "lora_fa", "tlora_plus", "basis_core", "seeded_down_relayed_up")


@pytest.mark.parametrize("method", METHODS)
def test_hotswapped_adapter_is_the_one_in_the_file(method, tmp_path):
    seeds = {} if method in DRAWN else {"seed": 5}
    other = adapted(config_of(method, **seeds), adapter_name="other")
    with torch.no_grad():
        other.base_model.model.classifier.modules_to_save["other"].bias.add_(1.0)
    other.save_pretrained(tmp_path)
    model = adapted(config_of(method))
    places = [parameter.data_ptr() for parameter in model.parameters()]
    rankfold.hotswap_adapter(model, tmp_path / "other")
    assert torch.equal(scores(model), scores(other))
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"r": 2}, "its r is another"), ({"alpha": 3.0}, "alpha"), ({"target_modules": ["query"]}, "layers")],
)
def test_adapter_of_other_options_cannot_be_hotswapped(options, reason, tmp_path):
    adapted(config_of("lora", **options)).save_pretrained(tmp_path)
    model = adapted(config_of("lora"))
    before = scores(model)
    with pytest.raises(AdapterFileError, match=reason):
        rankfold.hotswap_adapter(model, tmp_path)
    assert torch.equal(scores(model), before)


def test_frozen_factors_of_another_seed_or_merged_adapters_cannot_be_hotswapped(tmp_path):
    adapted(config_of("tlora", seed=5)).save_pretrained(tmp_path / "seed")
    adapted(config_of("tlora")).save_pretrained(tmp_path / "same")
    adapted(config_of("tlora"), bert(seed=9)).save_pretrained(tmp_path / "base")
    model = adapted(config_of("tlora"))
    with pytest.raises(AdapterFileError, match="its seed is another"):
        rankfold.hotswap_adapter(model, tmp_path / "seed")
    with pytest.raises(AdapterFileError, match="other base weights"):
        rankfold.hotswap_adapter(model, tmp_path / "base")
    model.merge_adapter()
    with pytest.raises(SpecError, match="unmerge it first"):
        rankfold.hotswap_adapter(model, tmp_path / "same")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_functions_of_peft_for_lora_alone_refuse_our_adapters(tmp_path):
    adapted(config_of("lora")).save_pretrained(tmp_path)
    model = adapted(config_of("lora"))
    with pytest.raises(ValueError, match="Hotswapping only supports"):
        peft_hotswap(model, str(tmp_path), adapter_name="default")
    with pytest.raises(ValueError, match="LoraLayer"), peft_rescale(model, 0.5):
        pass
    with pytest.raises(ValueError, match="RANKFOLD"):
        peft.get_peft_model(bert(), config_of("lora"), mixed=True)
    with pytest.raises(SpecError, match="another PEFT method"):
        peft.inject_adapter_in_model(
            config_of("lora", task_type=None),
            peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["query"]), bert()),
            adapter_name="ours",
        )
