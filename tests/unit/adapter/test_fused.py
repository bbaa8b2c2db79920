"""The fast way through a plain linear layer: values and gradients of the plain way, and its limits."""

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules

import rankfold
from rankfold.adapter.module import add_expanded, linear_and_code
from rankfold.presets import discover
from tests.support.tolerance import assert_close
from tests.support.toys import toy_sizes_allowed

METHODS = ["lora", "relayed_lora", "tlora", "tlora_plus", "lora_fa", "effilora", "hydra_lora"]


def leaves(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@settings(max_examples=40)
@given(
    tokens=st.integers(0, 4),
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    r=st.integers(1, 3),
    heads=st.none() | st.integers(1, 3),
    has_own_codes=st.booleans(),
    has_bias=st.booleans(),
    drops=st.booleans(),
)
def test_fused_steps_have_the_values_and_both_gradients_of_plain_ones(
    *, tokens, n, m, r, heads, has_own_codes, has_bias, drops
):
    mask, multiplier = ((torch.rand(tokens, n) < 0.6).to(torch.uint8), 2.5) if drops else (None, 1.0)
    codes = heads if heads and has_own_codes else 1

    def plain(x, weight, bias, down, up, weights):
        seen = x if mask is None else x * mask * multiplier
        code = functional.linear(seen, down)
        if weights is not None:
            code = (code.view(tokens, codes, r) * weights.unsqueeze(-1)).flatten(1)
        return functional.linear(x, weight, bias) + functional.linear(code, up)

    def fused(x, weight, bias, down, up, weights):
        result, code = linear_and_code(x, weight, bias, down, mask, multiplier)
        return add_expanded(result, code if heads is None else code.view(tokens, codes, r), up, weights)

    def outcome(change):
        x, down, up, weights = leaves(
            (tokens, n), (codes * r, n), (m, (heads or 1) * r), (tokens, heads or 1)
        )
        weight, bias = (leaf.detach() for leaf in leaves((m, n), (m,), seed=1))
        learned = [x, down, up] if heads is None else [x, down, up, weights]
        total = change(x, weight, bias if has_bias else None, down, up, None if heads is None else weights)
        first = torch.autograd.grad((total**2).sum(), learned, create_graph=True)
        second = torch.autograd.grad(sum((gradient**2).sum() for gradient in first), learned)
        return [total, *first, *second]

    for actual, expected in zip(outcome(fused), outcome(plain), strict=True):
        assert actual.shape == expected.shape
        if expected.numel():
            assert_close(actual, expected)


def kept_by(x, weight, down):
    """Return where the tensors lie that are kept for the backward pass."""
    kept: list[int] = []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear_and_code(x, weight, None, down)
    return kept


def test_input_is_kept_only_where_the_down_factor_learns():
    for learns in (True, False):
        x, down = leaves((2, 3), (1, 3))
        weight = leaves((4, 3), seed=1)[0].detach()
        assert (x.data_ptr() in kept_by(x, weight, down if learns else down.detach())) == learns


def test_input_without_a_gradient_gets_none():
    x, down = leaves((2, 3), (1, 3))
    weight = leaves((4, 3), seed=1)[0].detach()
    result, code = linear_and_code(x.detach(), weight, None, down)
    (result.sum() + code.sum()).backward()
    assert x.grad is None
    assert down.grad is not None


class Pair(nn.Module):
    """Two linear layers, one after the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def outcome(method, prepare=lambda model: None, dtype=torch.float64):
    """Return output and gradients of an adapted pair of layers, after `prepare`."""
    torch.manual_seed(0)
    targets = {"target_modules": ["first", "second"], "init_weights": False}
    config = rankfold.config(method, r=2, dropout=0.0, **targets)
    with toy_sizes_allowed():
        model = peft.get_peft_model(Pair().to(dtype), config)
    prepare(model)
    x = torch.randn(3, 6, dtype=dtype, requires_grad=True)
    output = model(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def with_hook(model):
    """Put a hook on every base layer, so that it has to be called."""
    for layer in (model.base_model.model.first, model.base_model.model.second):
        layer.base_layer.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("method", METHODS)
def test_layer_with_a_hook_is_called_and_gives_the_same(method):
    assert method in discover()
    for fast, plain in zip(outcome(method), outcome(method, with_hook), strict=True):
        assert_close(fast, plain)


@pytest.mark.parametrize(
    "hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hook_of_the_base_layer_is_not_passed_by(hook):
    seen = []

    def watch(model):
        getattr(model.base_model.model.first.base_layer, f"register_{hook}")(lambda *_: seen.append("called"))

    outcome("lora", watch)
    assert seen == ["called"]


# Torch says so of every module that is called without an input, as a factor is.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_hook_on_all_modules_sees_the_base_layer(hook):
    seen = []
    register = getattr(torch_modules, f"register_module_{hook}")
    handle = register(lambda module, *_: seen.append(type(module)))
    try:
        outcome("lora")
    finally:
        handle.remove()
    assert seen.count(nn.Linear) == 2


def test_forward_that_was_replaced_on_the_base_layer_is_called():
    def patch(model):
        base = model.base_model.model.second.base_layer
        original = base.forward
        base.forward = lambda x: original(x) + 100

    assert_close(outcome("lora", patch)[0], outcome("lora")[0] + 100)


@pytest.mark.parametrize("method", ["lora", "relayed_lora", "tlora"])
def test_gradients_of_single_rows_add_up_to_that_of_the_batch(method):
    torch.manual_seed(0)
    config = rankfold.config(method, r=2, target_modules=["first", "second"], init_weights=False)
    with toy_sizes_allowed():
        model = peft.get_peft_model(Pair().double(), config)
    learned = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    x = torch.randn(3, 6, dtype=torch.float64)

    def loss(values, rows):
        return torch.func.functional_call(model, values, (rows,)).square().sum()

    of_rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(learned, x)
    of_batch = torch.func.grad(loss)(learned, x)
    for name in learned:
        assert_close(of_rows[name].sum(dim=0), of_batch[name])


def test_base_weight_that_learns_gets_its_gradient():
    def thaw(model):
        model.base_model.model.first.base_layer.weight.requires_grad_()

    gradients = outcome("lora", thaw)
    assert len(gradients) == 2 + 5
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
