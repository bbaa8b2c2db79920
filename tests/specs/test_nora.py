"""NoRA is Lin et al., 2024: frozen outer factors from the base weight's SVD, and a thin pair between them."""

import peft
import pytest
import torch

import rankfold
from rankfold.errors import SpecError
from tests.reference import nora
from tests.specs import checks
from tests.specs.layers import KINDS, Layers, adapted, adapters, example_input, reference_output, sizes
from tests.specs.wide import wide_adapter

SPLIT = pytest.mark.parametrize("split", ["up", "even"])


def base_matrices(model):
    """The base weight of each adapted layer as outputs x inputs, by path."""
    kind = model.get_base_model().kind
    layers = {
        path: model.get_submodule(f"base_model.model.{path}").get_base_layer() for path in adapters(model)
    }
    is_transposed = kind in ("conv1d", "embedding")
    return {
        path: layer.weight.detach().T if is_transposed else layer.weight.detach().flatten(1)
        for path, layer in layers.items()
    }


@SPLIT
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("r", "inner"), [(1, 1), (3, 2)])
def test_nora_equals_its_formula(kind, split, r, inner):
    model = adapted("nora", kind, r=r, inner=inner, alpha=5.0, split=split, init_weights=False)
    weights = {id(adapters(model)[path]): matrix for path, matrix in base_matrices(model).items()}

    def delta(parts):
        B, A = parts.trained("core.left"), parts.trained("core.right")
        return nora.delta(weights[id(parts.adapter)], B, A, r, alpha=5.0, split=split)

    checks.assert_same(
        model,
        example_input(kind),
        lambda x, parts_of: reference_output(model, x, lambda adapter: delta(parts_of(adapter))),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("r", "inner"), [(1, 1), (3, 2)])
def test_nora_has_its_number_of_parameters(kind, r, inner):
    model = adapted("nora", kind, r=r, inner=inner)
    checks.assert_counts(model, nora.parameters(len(sizes(kind)), r, inner))


@SPLIT
@pytest.mark.parametrize("kind", KINDS)
def test_nora_changes_nothing_at_the_start(kind, split):
    assert checks.largest_change(adapted("nora", kind, r=2, split=split), kind) == 0


def test_nora_trains_and_saves_the_inner_pair_alone(tmp_path):
    checks.assert_trains_exactly(adapted("nora", r=2), {"core"}, tmp_path)


def test_nora_moves_only_the_zeroed_matrix_of_the_pair_in_the_first_step():
    assert checks.roles_with_gradient(adapted("nora", r=2)) == {"core.left"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("nora"))
def test_nora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("nora", option, value)


def test_nora_defaults_are_documented():
    adapter = wide_adapter("nora", 64, 48)
    assert (adapter.down.rows, adapter.core.left.shape, adapter.scaling) == (32, (32, 8), 1.0)
    assert isinstance(adapter.input_dropout, torch.nn.Identity)
    assert adapter.core.right.abs().max() <= 32**-0.5
    assert not adapter.core.left.any()


@SPLIT
@pytest.mark.parametrize("kind", KINDS)
def test_nora_takes_equal_outer_factors_when_it_is_loaded_again(kind, split, tmp_path):
    model = adapted("nora", kind, r=3, split=split, init_weights=False)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Layers(kind).double(), tmp_path)
    for path, adapter in adapters(model).items():
        for role in ("down", "core", "up"):
            assert torch.equal(getattr(adapters(again)[path], role)(), getattr(adapter, role)())
    x = example_input(kind)
    assert all(torch.equal(a, b) for a, b in zip(model.eval()(x), again.eval()(x), strict=True))


def test_nora_takes_the_unmerged_weight_when_another_adapter_is_merged():
    config = rankfold.config("nora", r=3, target_modules=["query", "value", "narrow"])
    model = adapted("lora", r=2, init_weights=False)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model"):  # PEFT does, once the adapter is built
        model.add_adapter("nested", config)
    outer = {
        path: layer.rankfold_adapters["nested"]
        for path, layer in model.named_modules()
        if hasattr(layer, "rankfold_adapters")
    }
    for path, matrix in base_matrices(model).items():
        up, down = nora.outer(matrix, 3)
        adapter = outer[f"base_model.model.{path}"]
        checks.assert_close(adapter.up().double(), up)
        checks.assert_close(adapter.down().double(), down)


def test_nora_outer_factors_do_not_follow_the_base_when_it_changes_later():
    """They are frozen: they stay, also when the adapter itself is merged into the weight."""
    model = adapted("nora", r=2, init_weights=False)
    before = {path: adapter.up() for path, adapter in adapters(model).items()}
    model.merge_adapter()
    assert all(torch.equal(adapter.up(), before[path]) for path, adapter in adapters(model).items())


@pytest.mark.parametrize("kind", KINDS)
def test_nora_refuses_more_singular_vectors_than_there_are_and_leaves_the_model_as_it_was(kind):
    base = Layers(kind)
    before = list(base.state_dict())
    config = rankfold.config("nora", r=6, target_modules=["query", "value"])
    message = r"r=6 is more than the \d singular vectors of '0.(query|value)'; give r at most"
    with pytest.raises(SpecError, match=message):
        peft.get_peft_model(base, config)
    assert list(base.state_dict()) == before
