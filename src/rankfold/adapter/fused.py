"""The base layer's product and the adapter's code of one input, as one step of autograd.

Apart, each of them writes a gradient of the input as large as the input, and autograd adds the two. Here the
second is added into the first where it lies, which is most of what an adapter costs a training step.
"""

from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def linear_and_code(
    x: Float[Tensor, "*batch in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None,
    down: Float[Tensor, "rank in_features"],
) -> tuple[Float[Tensor, "*batch out_features"], Float[Tensor, "*batch rank"]]:
    """Return the output of a frozen linear layer, and the code of its input.

    Args:
        x: The input.
        weight: The layer's weight, which gets no gradient.
        bias: The layer's bias, if any, which gets no gradient.
        down: The adapter's down factor.
    """
    return cast(tuple[Tensor, Tensor], cast(Any, _LinearAndCode).apply(x, weight, bias, down))


def add_expanded(
    result: Float[Tensor, "*batch out_features"],
    code: Float[Tensor, "*batch rank"],
    up: Float[Tensor, "out_features rank"],
) -> Float[Tensor, "*batch out_features"]:
    """Return result + U code, without writing the second one down."""
    total = torch.addmm(result.reshape(-1, result.shape[-1]), code.reshape(-1, code.shape[-1]), up.T)
    return total.reshape(result.shape)


@final
class _LinearAndCode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor) -> Any:
        # The input is kept for the down factor's gradient only.
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, down)
        return functional.linear(x, weight, bias), functional.linear(x, down)

    # In differentiable steps, for those who want gradients of gradients.
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (torch's way)
        of_result, of_code = gradients
        x, weight, down = ctx.saved_tensors
        flat_code = of_code.reshape(-1, of_code.shape[-1])
        of_x = of_down = None
        if ctx.needs_input_grad[0]:
            flat_x = of_result.reshape(-1, of_result.shape[-1]) @ weight
            of_x = flat_x.addmm_(flat_code, down).reshape(*of_result.shape[:-1], weight.shape[1])
        if x is not None:
            of_down = flat_code.T @ x.reshape(-1, x.shape[-1])
        return of_x, None, None, of_down
