"""LoRA-FA's correction: a step of the up factor is the best step of the weight that it can make."""

import pytest
import torch

import rankfold
from rankfold.adapter.module import adapters_in
from rankfold.errors import SpecError
from tests.support.tolerance import assert_close
from tests.support.toys import adapted, ids, toy

LR = 0.01
TARGETS = ["query", "c_fc", "c_proj", "tokens"]


def frozen_down(**options):
    return rankfold.config("lora_fa", **{"r": 2, "alpha": 6.0, "target_modules": TARGETS, **options})


def loss_of(model):
    return model(ids(8)).square().sum()


def full_gradients():
    """Return the gradient of every weight of the base, as full training would have it."""
    base = toy()
    loss_of(base).backward()
    return dict(base.named_parameters())


def test_the_weight_moves_by_the_full_gradient_projected_on_the_rows_of_the_down_factor():
    model = adapted(frozen_down())
    optimizer = rankfold.optimizer(model, torch.optim.SGD, lr=LR)
    rankfold.lora_fa_correction(model, optimizer)
    loss_of(model).backward()
    optimizer.step()
    full = full_gradients()
    for path, _, adapter in adapters_in(model):
        weight = full[f"{path.removeprefix('base_model.model.')}.weight"]
        is_transposed = path.endswith(("c_proj", "tokens"))
        gradient = weight.grad.T if is_transposed else weight.grad
        down = adapter.down().double()
        projection = torch.linalg.pinv(down) @ down
        moved = adapter.delta_weight()
        assert_close(moved.T if is_transposed else moved, -LR * gradient @ projection, dtype=torch.float32)


def test_gradients_become_the_formula_of_the_paper():
    model = adapted(frozen_down())
    optimizer = rankfold.optimizer(model, torch.optim.SGD, lr=LR)
    loss_of(model).backward()
    plain = {path: adapter.up.weight.grad.clone() for path, _, adapter in adapters_in(model)}
    rankfold.lora_fa_correction(model, optimizer)
    optimizer.step()
    for path, _, adapter in adapters_in(model):
        down, scaling = adapter.down().double(), 6.0 / 2
        gram = down @ down.T + 1e-8 * torch.eye(2)
        assert_close(adapter.up.weight.grad @ gram, plain[path] / scaling**2)


def test_the_handle_ends_the_correction():
    steps = []
    for is_corrected in (True, False):
        model = adapted(frozen_down())
        optimizer = rankfold.optimizer(model, torch.optim.SGD, lr=LR)
        handle = rankfold.lora_fa_correction(model, optimizer)
        if not is_corrected:
            handle.remove()
        loss_of(model).backward()
        optimizer.step()
        steps.append(next(adapters_in(model))[2].up.weight.detach().clone())
    plain = adapted(frozen_down())
    loss_of(plain).backward()
    expected = -LR * next(adapters_in(plain))[2].up.weight.grad
    assert_close(steps[1], expected)
    assert not torch.allclose(steps[0], expected)


def test_parameters_without_a_gradient_are_left_alone():
    model = adapted(frozen_down())
    optimizer = rankfold.optimizer(model, torch.optim.SGD, lr=LR)
    rankfold.lora_fa_correction(model, optimizer)
    optimizer.step()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        rankfold.config("lora", r=2, target_modules=TARGETS),
        rankfold.config("tlora", r=2, target_modules=TARGETS),
        rankfold.config("tlora_plus", r=2, train="core_and_up", target_modules=TARGETS),
        rankfold.config("share_lora", r=2, shared="both", target_modules=["query"]),
        rankfold.RankfoldConfig(
            r=2,
            down=rankfold.SeededSpec(),
            up=rankfold.RelaySpec(1, initial="zeros"),
            target_modules=["query"],
        ),
        rankfold.RankfoldConfig(
            r=2, down=rankfold.SeededSpec(), share_up="module_type", target_modules=["query"]
        ),
        rankfold.RankfoldConfig(r=2, down=rankfold.SeededSpec(), scaling="learned", target_modules=["query"]),
    ],
    ids=[
        "trained down",
        "core alone",
        "core",
        "shared and trained",
        "relayed up",
        "shared up",
        "learned scale",
    ],
)
def test_an_adapter_of_another_kind_is_refused(config):
    model = adapted(config)
    with pytest.raises(SpecError, match="LoRA-FA's correction is defined for nothing else; leave it out"):
        rankfold.lora_fa_correction(model, rankfold.optimizer(model, torch.optim.SGD, lr=LR))


def test_a_model_that_trains_no_adapter_is_refused():
    model = adapted(frozen_down())
    optimizer = rankfold.optimizer(model, torch.optim.SGD, lr=LR)
    model.requires_grad_(requires_grad=False)
    with pytest.raises(SpecError, match="no adapter of the model is trained"):
        rankfold.lora_fa_correction(model, optimizer)
