"""TLoRA+ is Cao and Liu, 2026, eq. 1-4: three factors, trained as the configuration says."""

import pytest

from tests.reference import tlora_plus
from tests.specs import checks
from tests.specs.layers import KINDS, adapted, sizes
from tests.specs.wide import wide_adapter

TRAINED = pytest.mark.parametrize("train", tlora_plus.TRAINED)
ROLES = {"C": "up", "B": "core", "A": "down"}


@TRAINED
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("r", "rank_up"), [(3, None), (2, 3)])
def test_tlora_plus_equals_the_papers_formula(kind, train, r, rank_up):
    def delta(parts):
        C, B, A = (
            parts.trained(f"{role}.weight") if symbol in tlora_plus.TRAINED[train] else parts.frozen(role)
            for symbol, role in ROLES.items()
        )
        return tlora_plus.delta(C, B, A)

    checks.assert_equals_reference("tlora_plus", kind, delta, r=r, rank_up=rank_up, train=train)


def test_tlora_plus_scales_by_alpha_over_r_when_an_alpha_is_given():
    def delta(parts):
        C, B, A = (parts.trained(f"{role}.weight") for role in ROLES.values())
        return tlora_plus.delta(C, B, A, alpha=5.0)

    checks.assert_equals_reference("tlora_plus", "linear", delta, r=2, rank_up=3, alpha=5.0)


@TRAINED
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("r", "rank_up"), [(1, None), (3, None), (2, 3)])
def test_tlora_plus_has_the_papers_number_of_parameters(kind, train, r, rank_up):
    expected = tlora_plus.parameters(sizes(kind), rank_up or r, r, tlora_plus.TRAINED[train])
    checks.assert_counts(adapted("tlora_plus", kind, r=r, rank_up=rank_up, train=train), expected)


@TRAINED
@pytest.mark.parametrize("kind", KINDS)
def test_tlora_plus_recommended_changes_nothing_at_the_start(kind, train):
    assert checks.largest_change(adapted("tlora_plus", kind, r=2, train=train), kind) == 0


@TRAINED
def test_tlora_plus_paper_changes_the_model_at_the_start(train):
    assert checks.largest_change(adapted("tlora_plus", r=2, train=train, reading="paper")) > 0.01


@TRAINED
@pytest.mark.parametrize("reading", ["recommended", "paper"])
def test_tlora_plus_trains_and_saves_exactly_what_is_configured(train, reading, tmp_path):
    roles = {ROLES[symbol] for symbol in tlora_plus.TRAINED[train]}
    checks.assert_trains_exactly(adapted("tlora_plus", r=2, train=train, reading=reading), roles, tmp_path)


@TRAINED
def test_tlora_plus_moves_only_the_zero_core_in_the_first_step(train):
    assert checks.roles_with_gradient(adapted("tlora_plus", r=2, train=train)) == {"core.weight"}


@TRAINED
def test_tlora_plus_paper_moves_all_that_is_trained_in_the_first_step(train):
    moved = checks.roles_with_gradient(adapted("tlora_plus", r=2, train=train, reading="paper"))
    assert moved == {f"{ROLES[symbol]}.weight" for symbol in tlora_plus.TRAINED[train]}


@pytest.mark.parametrize(("option", "value"), checks.every_value("tlora_plus"))
def test_tlora_plus_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("tlora_plus", option, value)


@TRAINED
def test_tlora_plus_starts_with_variance_one_over_what_each_factor_reads(train):
    adapter = wide_adapter("tlora_plus", r=96, rank_up=64, train=train, reading="paper")
    for role in ("down", "core", "up"):
        factor = getattr(adapter, role)
        assert checks.spread(factor()) == pytest.approx(factor.cols**-0.5, rel=0.02)
    assert (adapter.down.cols, adapter.core.cols, adapter.up.cols) == (1024, 96, 64)


def test_tlora_plus_recommended_starts_with_a_zero_core():
    adapter = wide_adapter("tlora_plus", r=96)
    assert not adapter.core().any()
    assert checks.spread(adapter.down()) == pytest.approx(1024**-0.5, rel=0.02)
