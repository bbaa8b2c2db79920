"""LoRAMoE is Dou et al., 2024, section 3.2: experts in the layers of MLPs, all of them weighed."""

import pytest

import rankfold
from tests.reference import lora_moe
from tests.specs import checks
from tests.specs.blocks import MLP_SIZES, STYLES, adapted_blocks
from tests.specs.layers import adapted, adapters, sizes
from tests.specs.wide import wide_adapter


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("r", "heads"), [(1, 4), (2, 3)])
def test_lora_moe_equals_the_papers_formula(kind, r, heads):
    def forward(x, W, b, parts):
        return lora_moe.forward(x, W, b, parts.downs, parts.ups, parts.trained("router.weight"), alpha=5.0)

    checks.assert_layers_equal_reference("lora_moe", kind, forward, r=r, heads=heads, alpha=5.0, dropout=0.0)


@pytest.mark.parametrize(("r", "heads"), [(1, 4), (3, 2)])
def test_lora_moe_has_the_papers_number_of_parameters(r, heads):
    checks.assert_counts(adapted("lora_moe", r=r, heads=heads), lora_moe.parameters(sizes(), r, heads))


@pytest.mark.parametrize("style", STYLES)
def test_lora_moe_is_made_for_the_layers_of_mlps(style):
    assert rankfold.config("lora_moe").target_modules == "mlp"
    model = adapted_blocks("lora_moe", style, r=2, target_modules="mlp")
    found = [(each.geometry.in_features, each.geometry.out_features) for each in adapters(model).values()]
    assert found == 2 * MLP_SIZES[style]
    checks.assert_counts(model, lora_moe.parameters(found, 2, 8))


def test_lora_moe_changes_nothing_at_the_start():
    assert checks.largest_change(adapted("lora_moe", r=2)) == 0


def test_lora_moe_trains_and_saves_factors_and_routers(tmp_path):
    checks.assert_trains_exactly(adapted("lora_moe", r=2), {"down", "up", "router"}, tmp_path)


def test_lora_moe_moves_only_the_up_factors_in_the_first_step():
    assert checks.roles_with_gradient(adapted("lora_moe", r=2)) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("lora_moe", heads=(None, 2, 3), r=(1, 2, 3)))
def test_lora_moe_runs_with_every_value_of_every_option(option, value):
    beside = {"balance_loss": 0.1} if option == "delta" else {}
    checks.assert_runs("lora_moe", option, value, **beside)


@pytest.mark.parametrize(
    ("setting", "r", "alpha", "heads"), [("script", 4, 32.0, 8), ("template", 24, 48.0, 6)]
)
def test_lora_moe_settings_are_the_published_ones(setting, r, alpha, heads):
    adapter = wide_adapter("lora_moe", setting=setting)
    assert (adapter.down.rows, adapter.scaling, adapter.router.heads) == (heads * r, alpha / r, heads)
    assert (adapter.input_dropout.p, adapter.router.spec.top_k, adapter.router.bias) == (0.05, None, None)
    assert adapter.router.spec.balance is None, "both published scripts leave it out"


def test_lora_moe_takes_single_numbers_instead_of_the_settings():
    adapter = wide_adapter("lora_moe", setting="template", r=8, heads=3)
    assert (adapter.down.rows, adapter.scaling) == (24, 6.0)


def test_lora_moe_asks_for_the_localized_loss_with_its_delta():
    balance = wide_adapter("lora_moe", balance_loss=0.2, delta=0.3).router.spec.balance
    assert (balance.kind, balance.coefficient, balance.delta) == ("localized", 0.2, 0.3)
