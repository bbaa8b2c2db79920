"""Groups of parameters: which adapters, which parameters, which optimisers."""

import logging

import peft
import pytest
import torch
from torch import nn

import rankfold
from rankfold.errors import SpecError
from tests.support.toys import adapted, ids, preset_configs

LR = 1e-3


def config(method="lora", **options):
    return rankfold.config(method, **{"r": 2, "target_modules": ["query", "c_fc"], **options})


def members(groups, role):
    return {parameter for group in groups if group["role"] == role for parameter in group["params"]}


def trained(model):
    return {parameter for parameter in model.parameters() if parameter.requires_grad}


def test_everything_outside_adapters_is_the_head_at_the_base_rate():
    model = adapted(config(modules_to_save=["head"]))
    groups = rankfold.parameter_groups(model, lr=LR, loraplus_ratio=16, weight_decay=0.1)
    head = {each for name, each in model.named_parameters() if "modules_to_save" in name}
    assert members(groups, "head") == head
    assert {(group["lr"], group["weight_decay"]) for group in groups if group["role"] == "head"} == {
        (LR, 0.1),  # the matrix
        (LR, 0.0),  # the bias
    }


def test_the_head_has_the_multiple_that_is_asked_for():
    groups = rankfold.parameter_groups(adapted(config(modules_to_save=["head"])), lr=LR, groups={"head": 0.1})
    assert {group["role"]: group["lr"] for group in groups} == {
        "down": LR,
        "up": LR,
        "head": pytest.approx(0.1 * LR),
    }


def test_a_multiple_of_a_head_that_is_not_there_is_an_error():
    with pytest.raises(SpecError, match="the learning rate for 'head' applies to no parameter"):
        rankfold.parameter_groups(adapted(config()), lr=LR, groups={"head": 0.1})


@pytest.mark.parametrize(
    "options",
    [
        {"tlora_ratio": 4},
        {"tlora_ratio": 4, "base_role": "core"},
        {"per_module": True},
        {"groups": {"core": 8}},
    ],
    ids=str,
)
def test_a_rate_of_a_core_is_an_error_where_there_is_none(options):
    with pytest.raises(SpecError, match=r"'core' applies to no parameter.* trains only 'down', 'up'; use"):
        rankfold.parameter_groups(adapted(config()), lr=LR, **options)


@pytest.mark.parametrize(
    ("train", "missing"), [("core", "up"), ("core_and_down", "up"), ("core_and_up", None)]
)
def test_a_ratio_is_an_error_exactly_where_it_would_miss_a_frozen_side(train, missing):
    model = adapted(config("tlora_plus", train=train))
    if missing is None:
        groups = rankfold.parameter_groups(model, lr=LR, tlora_ratio=4)
        assert [group["name"] for group in groups] == ["core x8", "up x2"]
    else:
        with pytest.raises(SpecError, match=f"the learning rate for '{missing}' applies to no parameter"):
            rankfold.parameter_groups(model, lr=LR, tlora_ratio=4)


@pytest.mark.parametrize(
    "options", [{"tlora_ratio": 1}, {"loraplus_ratio": 1}, {"groups": {"core": 1}}], ids=str
)
def test_a_ratio_of_one_asks_for_nothing(options):
    groups = rankfold.parameter_groups(adapted(config()), lr=LR, **options)
    assert [(group["name"], group["lr"]) for group in groups] == [("down", LR), ("up", LR)]


def test_what_is_frozen_by_hand_is_in_no_group_and_its_rate_is_refused():
    model = adapted(config("tlora_plus"))
    for name, parameter in model.named_parameters():
        if ".rankfold_up." in name:
            parameter.requires_grad = False
    groups = rankfold.parameter_groups(model, lr=LR, groups={"core": 8})
    assert members(groups, "core") | members(groups, "down") == trained(model)
    assert not members(groups, "up")
    with pytest.raises(SpecError, match="'up' applies to no parameter"):
        rankfold.parameter_groups(model, lr=LR, tlora_ratio=4)


def test_only_active_adapters_are_in_groups_and_a_name_picks_one_of_them():
    model = adapted(config("lora"))
    model.add_adapter("second", config("tlora_plus"))
    assert not members(rankfold.parameter_groups(model, lr=LR), "core")
    model.base_model.set_adapter(["default", "second"])
    both = rankfold.parameter_groups(model, lr=LR, tlora_ratio=4)
    assert sum(len(group["params"]) for group in both) == len(trained(model))
    second = rankfold.parameter_groups(model, lr=LR, tlora_ratio=4, adapter_name="second")
    named = {each for name, each in model.named_parameters() if name.endswith(("second", "second.weight"))}
    assert {each for group in second for each in group["params"]} == named
    with pytest.raises(SpecError, match="'core' applies to no parameter"):
        rankfold.parameter_groups(model, lr=LR, tlora_ratio=4, adapter_name="default")
    with pytest.raises(SpecError, match=r"unknown adapter 'secnd'\. Did you mean 'second'"):
        rankfold.parameter_groups(model, lr=LR, adapter_name="secnd")


def test_a_model_where_nothing_is_trained_is_refused():
    model = adapted(config()).requires_grad_(requires_grad=False)
    with pytest.raises(SpecError, match="the model has no trainable parameter"):
        rankfold.parameter_groups(model, lr=LR)


def test_a_model_without_rankfold_adapters_is_refused():
    for model in (
        nn.Linear(3, 3),
        peft.get_peft_model(nn.Sequential(nn.Linear(3, 3)), peft.LoraConfig(target_modules=["0"])),
    ):
        with pytest.raises(SpecError, match="the model has no rankfold adapter"):
            rankfold.parameter_groups(model, lr=LR, loraplus_ratio=16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(options, words):
    with pytest.raises(SpecError, match=words):
        rankfold.parameter_groups(adapted(config()), **{"lr": LR, **options})


def test_adapters_of_embeddings_have_their_own_rate_in_lora_plus_only():
    model = adapted(config(target_modules=["query", "tokens"]))
    of_tokens = {each for name, each in model.named_parameters() if "tokens" in name and each.requires_grad}
    for rate in (1e-6, 1e-5):
        own = {} if rate == 1e-6 else {"embedding_lr": rate}
        groups = rankfold.parameter_groups(model, lr=LR, loraplus_ratio=16, **own)
        assert members(groups, "embedding") == of_tokens
        (group,) = (group for group in groups if group["role"] == "embedding")
        assert group["lr"] == pytest.approx(rate)
    assert not members(rankfold.parameter_groups(model, lr=LR, groups={"up": 16}), "embedding")
    with pytest.raises(SpecError, match="'embedding' applies to no parameter"):
        rankfold.parameter_groups(adapted(config()), lr=LR, loraplus_ratio=16, embedding_lr=1e-5)


def test_a_factor_that_layers_of_other_sizes_share_cannot_have_two_rates():
    fields = {"r": 2, "core": rankfold.DenseSpec("zeros"), "up": rankfold.DenseSpec(), "share_up": "slice"}
    model = adapted(rankfold.RankfoldConfig(**fields, target_modules=["query", "c_fc"]))
    with pytest.raises(SpecError, match=r"the up factor of '.*c_fc' is shared .* \(up x\S+ and up x\S+\)"):
        rankfold.parameter_groups(model, lr=LR, per_module=True)
    assert len(members(rankfold.parameter_groups(model, lr=LR, tlora_ratio=4), "up")) == 1


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop]
)
def test_any_optimiser_takes_the_groups_and_its_own_options(kind):
    own = {"momentum": 0.5} if kind is torch.optim.SGD else {"eps": 1e-5}
    made = rankfold.optimizer(
        adapted(config("tlora_plus")), kind, lr=LR, tlora_ratio=4, base_role="core", weight_decay=0.1, **own
    )
    assert type(made) is kind
    assert [group["role"] for group in made.param_groups] == ["down", "core", "up"]
    for group in made.param_groups:
        assert group["lr"] == pytest.approx(LR * {"down": 1 / 8, "core": 1, "up": 1 / 4}[group["role"]])
        assert group["weight_decay"] == 0.1
        assert own.items() <= group.items()


def test_a_default_weight_decay_of_the_class_does_not_slip_in():
    assert torch.optim.AdamW([nn.Parameter(torch.ones(1))]).defaults["weight_decay"] > 0
    made = rankfold.optimizer(adapted(config()), torch.optim.AdamW, lr=LR)
    assert {group["weight_decay"] for group in made.param_groups} == {0.0}


def test_a_weight_decay_that_the_class_does_not_know_is_refused():
    assert rankfold.optimizer(adapted(config()), torch.optim.Rprop, lr=LR)
    with pytest.raises(SpecError, match=r"weight_decay=0\.1 has no effect: Rprop has none; leave it out"):
        rankfold.optimizer(adapted(config()), torch.optim.Rprop, lr=LR, weight_decay=0.1)


def test_an_option_that_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="tlora_rato"):
        rankfold.optimizer(adapted(config("tlora_plus")), torch.optim.AdamW, lr=LR, tlora_rato=4)


def test_decay_shrinks_matrices_by_their_own_rate_and_leaves_vectors_alone():
    model = adapted(preset_configs(init_weights=False)["tlora"])
    made = rankfold.optimizer(
        model, torch.optim.AdamW, lr=0.1, weight_decay=0.5, groups={"core": 2, "scale": 2}
    )
    for parameter in trained(model):
        parameter.grad = torch.zeros_like(parameter)
    before = {parameter: parameter.detach().clone() for parameter in trained(model)}
    made.step()
    for parameter, start in before.items():
        factor = 1 - 0.1 * 2 * 0.5 if parameter.ndim > 1 else 1
        assert torch.allclose(parameter, factor * start)


def test_a_schedule_scales_every_group_alike():
    model = adapted(config("tlora_plus"))
    made = rankfold.optimizer(model, torch.optim.AdamW, lr=LR, tlora_ratio=4)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1 / (1 + step))
    model(ids()).sum().backward()
    for step in range(1, 4):
        made.step()
        schedule.step()
        for group in made.param_groups:
            assert group["lr"] == pytest.approx(LR * group["multiplier"] / (1 + step))
    assert [
        group.learning_rate for group in rankfold.RateTable.of(made.param_groups).groups
    ] == pytest.approx([LR, 8 * LR, 2 * LR])


def test_groups_are_the_same_for_the_same_model_in_the_same_order():
    one, two = (
        rankfold.parameter_groups(adapted(config("tlora_plus")), lr=LR, per_module=True) for _ in "ab"
    )
    for left, right in zip(one, two, strict=True):
        assert left["name"] == right["name"]
        assert [each.shape for each in left["params"]] == [each.shape for each in right["params"]]


def test_the_table_is_logged_and_nothing_is_printed(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="rankfold"):
        groups = rankfold.parameter_groups(adapted(config()), lr=LR, loraplus_ratio=16)
    assert str(rankfold.RateTable.of(groups)) in caplog.text
    assert capsys.readouterr() == ("", "")
