"""Checks of the spec tests of all presets, against each preset's own formula."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import rankfold
from rankfold.adapter.module import Adapter
from rankfold.presets import discover
from rankfold.train.auxiliary import auxiliary_loss
from tests.specs.layers import adapted, adapters, example_input, layer_outputs, reference_output
from tests.support.tolerance import assert_close


@dataclass(frozen=True)
class Parts:
    """The tensors of one adapter, for a reference: trained ones as leaves, frozen ones as they are."""

    adapter: Adapter
    leaves: dict[int, Tensor]

    def trained(self, name: str) -> Tensor:
        """Return the leaf that stands for a trained tensor, such as `down.weight`."""
        return self.leaves[id(self.adapter.get_parameter(name))]

    def frozen(self, role: str) -> Tensor:
        """Return the matrix of a frozen factor."""
        factor = getattr(self.adapter, role)
        assert factor.is_frozen
        return factor().double()

    @property
    def ups(self) -> tuple[Tensor, ...]:
        """The up factor of every head, m x r."""
        heads = self.adapter.router.heads if self.adapter.router is not None else 1
        return self.trained("up.weight").chunk(heads, dim=1)

    @property
    def downs(self) -> tuple[Tensor, ...]:
        """The down factor of every head that has its own, r x n."""
        return self.trained("down.weight").chunk(self.adapter.down_heads)

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of the layer, n and m."""
        return self.adapter.geometry.in_features, self.adapter.geometry.out_features


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the tensors that a step would change."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def randomise(model: nn.Module) -> None:
    """Give every trained tensor values of its own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def assert_equals_reference(
    method: str, kind: str, delta_of: Callable[[Parts], Tensor], **options: Any
) -> None:
    """Check outputs, and the gradients of every trained tensor and of the input, against a formula for dW."""
    model = adapted(method, kind, init_weights=False, **options)
    assert_same(
        model,
        example_input(kind),
        lambda x, parts_of: reference_output(model, x, lambda adapter: delta_of(parts_of(adapter))),
    )


def assert_layers_equal_reference(
    method: str, kind: str, forward_of: Callable[[Tensor, Tensor, Tensor, Parts], Tensor], **options: Any
) -> None:
    """Check the same against a formula for the output of a layer W, b for x."""
    model = adapted(method, kind, init_weights=False, **options)
    assert_same(
        model,
        example_input(kind),
        lambda x, parts_of: layer_outputs(
            model, x, lambda seen, W, b, adapter: forward_of(seen, W, b, parts_of(adapter))
        ),
    )


def assert_same(
    model: nn.Module,
    x: Tensor,
    expected_of: Callable[[Tensor, Callable[[Adapter], Parts]], Sequence[Tensor]],
) -> None:
    """Check outputs and gradients of a model against formulas for all that it returns."""
    randomise(model)
    leaves = {id(tensor): tensor.detach().clone().requires_grad_() for tensor in trained(model).values()}
    x_of_reference = x.detach().clone().requires_grad_(x.requires_grad)

    outputs = model(x)
    expected = expected_of(x_of_reference, lambda adapter: Parts(adapter, leaves))
    for index, (actual, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(actual, wanted, what=f"output {index}")

    weighted_sum(outputs).backward()
    weighted_sum(expected).backward()
    if x.requires_grad:
        assert_close(x.grad, x_of_reference.grad, what="gradient of the input")
    for name, tensor in trained(model).items():
        leaf = leaves[id(tensor)]
        assert leaf.grad is not None, f"the formula does not use {name}"
        assert tensor.grad is not None, f"{name} is not used"
        assert_close(tensor.grad, leaf.grad, what=f"gradient of {name}")


def weighted_sum(outputs: Sequence[Tensor]) -> Tensor:
    """Return a number that depends on every entry of every output in its own way."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in outputs]
    return sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True))


def largest_change(model: peft.PeftModel, kind: str = "linear", x: Tensor | None = None) -> float:
    """Return the largest difference that the adapters make to any output."""
    x = example_input(kind) if x is None else x
    outputs = model.eval()(x)
    with model.disable_adapter():
        without = model(x)
    return max((a - b).abs().max().item() for a, b in zip(outputs, without, strict=True))


def assert_counts(model: peft.PeftModel, expected: int) -> None:
    """Check the claimed number of parameters against the count, and the count against the tensors."""
    count = rankfold.count_parameters(model)
    assert (count.stored, count.trainable, count.active) == (expected, expected, expected)
    assert sum(tensor.numel() for tensor in trained(model).values()) == expected


def assert_trains_exactly(model: peft.PeftModel, roles: set[str], folder: Path) -> None:
    """Check that these roles are trained and saved, and that nothing else is."""
    assert {name.split(".rankfold_")[1].split(".")[0] for name in trained(model)} == roles
    model.save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {name.split(".rankfold_")[1].split(".")[0] for name in tensors} == roles
    assert sum(tensor.numel() for tensor in tensors.values()) == rankfold.count_parameters(model).stored


ROUNDING = 1e-15
"""What is left of gradients in double precision that cancel each other on some processors."""


def roles_with_gradient(model: peft.PeftModel, x: Tensor | None = None) -> set[str]:
    """Return the parts that the first step would move, as `role.tensor`; all layers must agree."""
    weighted_sum(model.eval()(example_input() if x is None else x)).backward()
    moved = []
    for adapter in adapters(model).values():
        gradients = {name: parameter.grad for name, parameter in adapter.named_parameters()}
        moved.append(
            {
                name
                for name, gradient in gradients.items()
                if gradient is not None and gradient.abs().max() > ROUNDING
            }
        )
    assert all(each == moved[0] for each in moved)
    return moved[0]


def every_value(method: str, **values: Sequence[Any]) -> list[Any]:
    """Return (option, value) for every choice of every option, and for a few values of the open ones.

    Args:
        method: Name of the preset.
        **values: The values of an open option, where the usual ones do not go with the other options.
    """
    samples: dict[type, tuple[Any, ...]] = {int: (1, 2, 3), float: (0.25, 0.5), type(None): (None,)}
    options = discover()[method].options
    assert values.keys() <= options.keys()
    usual = {
        name: [
            value
            for kind in option.types
            for value in (option.choices if option.choices and kind is str else samples.get(kind, ()))
        ]
        for name, option in options.items()
    }
    return [(name, value) for name, of in (usual | values).items() for value in of]


def assert_runs(method: str, option: str, value: Any, **beside: Any) -> None:
    """Check that an adapter with this value and other options can be built, called and trained."""
    assert_can_train(
        adapted(method, init_weights=False, **{"r": 2, **beside, option: value}), example_input()
    )


def assert_can_train(model: nn.Module, x: Tensor) -> None:
    """Check that outputs and all gradients are finite, auxiliary losses included."""
    outputs = model.train()(x)
    assert all(torch.isfinite(output).all() for output in outputs)
    types = torch.arange(len(x)) % 2
    (weighted_sum(outputs) + auxiliary_loss(model, task_type=types)).backward()
    assert all(
        tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in trained(model).values()
    )


def spread(matrix: Tensor) -> float:
    """Return the root mean square of the entries."""
    return matrix.double().square().mean().sqrt().item()
