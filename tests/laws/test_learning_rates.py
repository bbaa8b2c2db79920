"""Laws about the learning rates of an adapter's parts."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

import rankfold
from rankfold.adapter import ROLES
from rankfold.adapter.module import adapters_in
from rankfold.errors import SpecError
from tests.laws.law import law
from tests.reference.learning_rates import lora_plus_rate, tlora_plus_rates
from tests.support.tolerance import assert_close
from tests.support.toys import adapted, ids

RATE = 0.01


def _trainable_roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the role of each trained parameter, by its name `<layer>.rankfold_<role>.<adapter>`."""
    return {
        parameter: name.partition(".rankfold_")[2].partition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _multiples(model: nn.Module) -> dict[str, float]:
    """Return a multiple of its own for each role that is trained."""
    trained = set(_trainable_roles(model).values())
    return {role: 2.0 + index for index, role in enumerate(ROLES) if role in trained}


def _rates(groups: list[dict[str, Any]]) -> dict[nn.Parameter, float]:
    return {parameter: group["lr"] for group in groups for parameter in group["params"]}


def _every_trained_parameter_is_in_exactly_one_group(config: rankfold.RankfoldConfig) -> None:
    """The groups hold every trained parameter once and nothing else, under the role of the count."""
    model = adapted(config)
    groups = rankfold.parameter_groups(model, lr=RATE, groups=_multiples(model), weight_decay=0.1)
    members = Counter(parameter for group in groups for parameter in group["params"])
    assert members == Counter([*_trainable_roles(model)])
    numbers = Counter[str]()
    for group in rankfold.RateTable.of(groups).groups:
        numbers[group.role] += group.numbers
    by_factor = rankfold.count_parameters(model).by_factor
    assert numbers == {role: count.active for role, count in by_factor.items() if count.active}


def _vectors_do_not_decay(config: rankfold.RankfoldConfig) -> None:
    """Matrices have the weight decay that was asked for; scales, diagonals and other vectors have none."""
    model = adapted(config)
    for group in rankfold.parameter_groups(model, lr=RATE, weight_decay=0.1):
        assert {0.1 if each.ndim > 1 else 0.0 for each in group["params"]} == {group["weight_decay"]}


def _a_multiple_multiplies_the_step(config: rankfold.RankfoldConfig) -> None:
    """One step of gradient descent moves each role by its multiple of the step at the base rate."""
    model = adapted(config)
    multiples = _multiples(model)
    model(ids(16)).square().sum().backward()
    steps: list[dict[nn.Parameter, torch.Tensor]] = []
    for groups in ({}, multiples):
        with torch.no_grad():
            for parameter in _trainable_roles(model):
                parameter.zero_()  # so that rounding hides nothing of a small step
        rankfold.optimizer(model, torch.optim.SGD, lr=RATE, groups=groups).step()
        steps.append({parameter: parameter.detach().clone() for parameter in _trainable_roles(model)})
    for parameter, role in _trainable_roles(model).items():
        assert_close(steps[1][parameter], multiples[role] * steps[0][parameter], what=role)


def _tlora_ratio_reaches_its_roles_or_is_refused(config: rankfold.RankfoldConfig) -> None:
    """Core and up have ratio^1.5 and ratio^0.5 of the rate; it is an error if one of them is not trained."""
    model = adapted(config)
    roles = _trainable_roles(model)
    if not {"core", "up"} <= set(roles.values()):
        assert_refused(model, "the learning rate for '(core|up)' applies to no parameter", tlora_ratio=4)
        return
    rates = _rates(rankfold.parameter_groups(model, lr=RATE, tlora_ratio=4))
    expected = {"down": RATE, "core": 8 * RATE, "up": 2 * RATE, "scale": RATE, "router": RATE}
    assert rates == {parameter: pytest.approx(expected[role]) for parameter, role in roles.items()}


def _loraplus_ratio_follows_its_rule_or_is_refused(config: rankfold.RankfoldConfig) -> None:
    """Rates are those of LoRA+'s rule; it is an error if no up factor learns, or one would have two rates."""
    model = adapted(config)
    roles = _trainable_roles(model)
    of_embedding, of_others = set[nn.Parameter](), set[nn.Parameter]()
    for path, _, adapter in adapters_in(model):
        (of_embedding if path.endswith("tokens") else of_others).update(adapter.parameters())
    if of_embedding & of_others:
        assert_refused(model, "is shared with layers for which it would have another rate", loraplus_ratio=16)
    elif "up" not in {roles[parameter] for parameter in of_others}:
        assert_refused(model, "the learning rate for 'up' applies to no parameter", loraplus_ratio=16)
    else:
        rates = _rates(rankfold.parameter_groups(model, lr=RATE, loraplus_ratio=16))
        for parameter, role in roles.items():
            is_of_embedding = parameter in of_embedding
            expected = lora_plus_rate(role == "up", parameter.ndim, is_of_embedding, RATE, 16, 1e-6)
            assert rates[parameter] == pytest.approx(expected)


def _rates_by_sizes_are_the_formulas_or_are_refused(config: rankfold.RankfoldConfig) -> None:
    """With `per_module` each layer's rates are the formulas'; one parameter with two rates is an error."""
    model = adapted(config)
    options = {"per_module": True, "base_role": "core"}
    expected: dict[nn.Parameter, set[str]] = {}
    for _, _, adapter in adapters_in(model):
        sizes = adapter.geometry.out_features, adapter.geometry.in_features
        rank = adapter.down.rows // adapter.down_heads
        rank_up = rank if adapter.core is None else adapter.core.rows
        eta = tlora_plus_rates(*sizes, rank_up, rank)
        for letter, factor in (("A", adapter.down), ("B", adapter.core), ("C", adapter.up)):
            for parameter in () if factor is None else factor.parameters():
                expected.setdefault(parameter, set()).add(f"{RATE * eta[letter]:.6g}")
    roles = _trainable_roles(model)
    if any(len(rates) > 1 for rates in expected.values()):
        assert_refused(model, "is shared with layers for which it would have another rate", **options)
    elif not {"down", "core", "up"} <= set(roles.values()):
        assert_refused(model, "applies to no parameter", **options)
    else:
        rates = _rates(rankfold.parameter_groups(model, lr=RATE, **options))
        for parameter in roles.keys() & expected.keys():
            assert {f"{rates[parameter]:.6g}"} == expected[parameter]


def assert_refused(model: nn.Module, words: str, **options: Any) -> None:
    """Check that these options are an error that says so."""
    with pytest.raises(SpecError, match=words):
        rankfold.parameter_groups(model, lr=RATE, **options)


test_every_trained_parameter_is_in_exactly_one_group = law(_every_trained_parameter_is_in_exactly_one_group)
test_vectors_do_not_decay = law(_vectors_do_not_decay)
test_a_multiple_multiplies_the_step = law(_a_multiple_multiplies_the_step, init_weights=False)
test_tlora_ratio_reaches_its_roles_or_is_refused = law(_tlora_ratio_reaches_its_roles_or_is_refused)
test_loraplus_ratio_follows_its_rule_or_is_refused = law(_loraplus_ratio_follows_its_rule_or_is_refused)
test_rates_by_sizes_are_the_formulas_or_are_refused = law(_rates_by_sizes_are_the_formulas_or_are_refused)
