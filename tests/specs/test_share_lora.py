"""ShareLoRA is LoRA with factors tied across the layers of a type (Song et al., 2024, section 3)."""

import itertools

import pytest

from tests.reference import share_lora
from tests.specs import checks
from tests.specs.layers import KINDS, SIZES, TARGETS, adapted, adapters, typed_sizes

SHARED = pytest.mark.parametrize("shared", ["down", "up", "both"])
ROLES = {"down": {"down"}, "up": {"up"}, "both": {"down", "up"}}


@SHARED
@pytest.mark.parametrize("kind", KINDS)
def test_share_lora_equals_the_papers_formula(kind, shared):
    def delta(parts):
        return share_lora.delta(parts.trained("up.weight"), parts.trained("down.weight"), alpha=5.0)

    checks.assert_equals_reference("share_lora", kind, delta, r=3, alpha=5.0, shared=shared)


@SHARED
@pytest.mark.parametrize("kind", KINDS)
def test_share_lora_slices_equal_the_corner_of_one_large_factor(kind, shared):
    def matrix(parts, role, rows, cols):
        name = (
            f"{role}.source.weight" if hasattr(getattr(parts.adapter, role), "source") else f"{role}.weight"
        )
        return parts.trained(name)[:rows, :cols]

    def delta(parts):
        n, m = parts.sizes
        return share_lora.delta(matrix(parts, "up", m, 3), matrix(parts, "down", 3, n), alpha=5.0)

    checks.assert_equals_reference("share_lora", kind, delta, r=3, alpha=5.0, shared=shared, scope="slice")


@SHARED
def test_share_lora_ties_the_layers_of_a_type_and_no_others(shared):
    by_path = adapters(adapted("share_lora", r=2, shared=shared))
    for role in ("down", "up"):
        for (path, one), (other_path, other) in itertools.combinations(by_path.items(), 2):
            same_type = path.rpartition(".")[2] == other_path.rpartition(".")[2]
            is_tied = getattr(one, role).weight is getattr(other, role).weight
            assert is_tied == (same_type and role in ROLES[shared])


@SHARED
@pytest.mark.parametrize("r", [1, 2, 3])
def test_share_lora_counts_what_is_shared_once_a_type(shared, r):
    checks.assert_counts(
        adapted("share_lora", r=r, shared=shared), share_lora.parameters(typed_sizes(), r, shared)
    )


@SHARED
def test_share_lora_counts_one_factor_when_slices_are_shared(shared):
    widest = max(n for n, _ in SIZES.values()), max(m for _, m in SIZES.values())
    own = sum(2 * ((shared == "up") * n + (shared == "down") * m) for n, m in SIZES.values())
    one = (shared != "up") * widest[0] + (shared != "down") * widest[1]
    checks.assert_counts(adapted("share_lora", r=2, shared=shared, scope="slice"), 2 * (own + one))


@SHARED
@pytest.mark.parametrize("scope", ["module_type", "slice"])
def test_share_lora_changes_nothing_at_the_start(shared, scope):
    assert checks.largest_change(adapted("share_lora", r=2, shared=shared, scope=scope)) == 0


@SHARED
@pytest.mark.parametrize("scope", ["module_type", "slice"])
def test_share_lora_trains_and_saves_both_factors_and_shared_ones_once(shared, scope, tmp_path):
    checks.assert_trains_exactly(
        adapted("share_lora", r=2, shared=shared, scope=scope), {"down", "up"}, tmp_path
    )


@SHARED
def test_share_lora_moves_only_the_up_factors_in_the_first_step(shared):
    assert checks.roles_with_gradient(adapted("share_lora", r=2, shared=shared)) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("share_lora"))
def test_share_lora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("share_lora", option, value)


def test_share_lora_starts_as_lora():
    for path, adapter in adapters(adapted("share_lora", r=3)).items():
        bound = SIZES[path.rpartition(".")[2]][0] ** -0.5
        assert 0.5 * bound < adapter.down().abs().max() <= bound
        assert not adapter.up().any()
    assert {path.rpartition(".")[2] for path in adapters(adapted("share_lora", r=3))} == set(TARGETS)
