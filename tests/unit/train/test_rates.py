"""Learning rates as a value: the multiples of the papers, and options that do not go together."""

import math
from dataclasses import fields
from inspect import signature

import pytest

import rankfold
from rankfold.adapter import ROLES
from rankfold.errors import SpecError
from rankfold.train.schedule import RateGroup, Rates, RateTable, group_name
from tests.reference.learning_rates import TLORA_PLUS_MULTIPLES, tlora_plus_rates
from tests.support.toys import adapted, toy_sizes_allowed

LR = 1e-4


def rates_of(model, **options):
    """Return the learning rate of each role, which must be one."""
    found = {}
    for group in rankfold.parameter_groups(model, lr=LR, **options):
        assert found.setdefault(group["role"], group["lr"]) == group["lr"]
    return found


@pytest.fixture
def tri():
    """Three factors on one layer of 5 inputs and 9 outputs."""
    return adapted(rankfold.config("tlora_plus", r=2, rank_up=3, target_modules=["blocks.0.c_fc"]))


@pytest.mark.parametrize(("ratio", "multiples"), TLORA_PLUS_MULTIPLES.items())
def test_multiples_of_tlora_plus_are_those_of_the_paper(tri, ratio, multiples):
    rates = rates_of(tri, tlora_ratio=ratio)
    assert rates["down"] == LR
    for role, multiple in zip(("core", "up"), multiples, strict=True):
        assert rates[role] / LR == pytest.approx(multiple, abs=0.05 if multiple > 10 else 0.005)


@pytest.mark.parametrize("base_role", ["down", "core", "up"])
@pytest.mark.parametrize("options", [{"tlora_ratio": 4}, {"per_module": True}], ids=["ratio", "sizes"])
def test_base_role_has_the_rate_itself_and_changes_no_relation(tri, base_role, options):
    rates, usual = (rates_of(tri, base_role=role, **options) for role in (base_role, "down"))
    assert rates[base_role] == LR
    relations = {rates[role] / usual[role] for role in usual}
    assert max(relations) == pytest.approx(min(relations))


def test_geometric_mean_of_tlora_plus_is_the_ratio_to_the_two_thirds(tri):
    rates = rates_of(tri, tlora_ratio=8)
    mean = math.prod(rates.values()) ** (1 / 3)
    assert mean == pytest.approx(LR * 8 ** (2 / 3))


def test_rates_by_sizes_are_the_formulas_of_the_paper(tri):
    rates = rates_of(tri, per_module=True, base_role="core")
    eta = tlora_plus_rates(m=9, n=5, r1=3, r2=2)
    assert [rates[role] / LR for role in ("down", "core", "up")] == pytest.approx([*eta.values()])


def test_rates_by_sizes_of_rank_one_are_the_simplified_ones():
    inputs, outputs = 5, 9
    with toy_sizes_allowed():
        model = adapted(rankfold.config("tlora_plus", r=1, target_modules=["blocks.0.c_fc"]))
    rates = rates_of(model, per_module=True)
    assert rates["core"] / LR == pytest.approx(inputs**1.5)
    assert rates["up"] / LR == pytest.approx(inputs**1.5 / outputs)


def test_rates_by_sizes_of_a_square_layer_are_those_of_inputs_over_rank():
    model = adapted(rankfold.config("tlora_plus", r=2, target_modules=["query"]))
    by_sizes, by_ratio = rates_of(model, per_module=True), rates_of(model, tlora_ratio=5 / 2)
    assert by_sizes == pytest.approx(by_ratio)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tlora_ratio": 0}, r"tlora_ratio is 0; give a number above 0"),
        ({"tlora_ratio": -4.0}, r"tlora_ratio is -4\.0"),
        ({"tlora_ratio": math.inf}, "tlora_ratio is inf"),
        ({"tlora_ratio": 1e300}, "below 1e"),
        ({"loraplus_ratio": math.nan}, "loraplus_ratio is nan"),
        ({"loraplus_ratio": "16"}, "loraplus_ratio is '16'"),
        ({"groups": {"up": 0}}, "the multiple of 'up' is 0"),
        ({"groups": {"up": True}}, "the multiple of 'up' is True"),
        ({"groups": {"dwon": 2}}, "unknown role 'dwon'. Did you mean 'down'"),
        ({"loraplus_ratio": 2, "embedding_lr": 0}, "embedding_lr is 0"),
        ({"tlora_ratio": 2, "base_role": "cor"}, "unknown base role 'cor'. Did you mean 'core'"),
        ({"tlora_ratio": 2, "base_role": "scale"}, "unknown base role 'scale'"),
        ({"tlora_ratio": 2, "loraplus_ratio": 2}, "tlora_ratio and loraplus_ratio each set"),
        ({"tlora_ratio": 2, "groups": {"up": 2}}, "tlora_ratio and groups each set"),
        ({"loraplus_ratio": 2, "groups": {"up": 2}}, "loraplus_ratio and groups each set"),
        ({"tlora_ratio": 2, "per_module": True}, "tlora_ratio and per_module each set"),
        ({"per_module": True, "loraplus_ratio": 2}, "per_module and loraplus_ratio each set"),
        ({"base_role": "core"}, "base_role='core' is TLoRA"),
        ({"loraplus_ratio": 2, "base_role": "up"}, "base_role='up' is TLoRA"),
        ({"embedding_lr": 1e-5}, "embedding_lr=1e-05 is LoRA"),
        ({"tlora_ratio": 2, "embedding_lr": 1e-5}, "embedding_lr=1e-05 is LoRA"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_with_a_remedy(options, words):
    with pytest.raises(SpecError, match=words) as caught:
        Rates(**options)
    assert ";" in str(caught.value) or "Available" in str(caught.value)


@pytest.mark.parametrize("role", [*ROLES, "head"])
def test_every_role_can_have_a_multiple(role):
    assert Rates(groups={role: 2}).roles() == {role}
    assert Rates(groups={role: 1}).roles() == set()


def test_only_what_differs_from_a_default_counts_as_asked():
    assert Rates().non_default() == {}
    assert Rates(base_role="down", groups={}, per_module=False).non_default() == {}
    assert Rates(tlora_ratio=1).non_default() == {"tlora_ratio": 1}


def test_every_option_is_one_of_parameter_groups_with_its_default():
    parameters = signature(rankfold.parameter_groups).parameters
    defaults = {each.name: parameters[each.name].default for each in fields(Rates)}
    assert Rates(**{name: value for name, value in defaults.items() if value is not None}) == Rates()


def test_a_table_of_text_has_a_line_a_group_of_equal_length():
    groups = (RateGroup("down", 1.0, 5e-5, 0.1, 12, 36864), RateGroup("core", 8.0, 4e-4, 0.0, 2, 768))
    lines = str(RateTable(groups)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines] == ["group", "down", "core"]
    for text in ("36,864", "5e-05", "core x8", "0.0004", "0.1"):
        assert text in "\n".join(lines)


def test_a_group_is_named_by_its_role_and_its_multiple_if_that_is_not_one():
    assert [group_name("up", multiple) for multiple in (1.0, 8**0.5, 16.0)] == ["up", "up x2.83", "up x16"]
