"""The base layers, term by term, with the weight W + dW: the result that an adapter must have.

A change dW is always a matrix of outputs x inputs; each function here says how its layer's weight is written
as one.
"""

import torch
from torch import Tensor


def linear(x: Tensor, W: Tensor, b: Tensor, dW: Tensor) -> Tensor:
    """y_o = b_o + sum_i (W + dW)_oi x_i, for W of outputs x inputs."""
    y = [b[o] + sum((W[o, i] + dW[o, i]) * x[..., i] for i in range(W.shape[1])) for o in range(W.shape[0])]
    return torch.stack(y, dim=-1)


def conv1d(x: Tensor, W: Tensor, b: Tensor, dW: Tensor) -> Tensor:
    """GPT-2's layer: the same with W stored as inputs x outputs."""
    return linear(x, W.T, b, dW)


def embedding(x: Tensor, W: Tensor, dW: Tensor) -> Tensor:
    """y = row x of the table W (tokens x features), so that dW (features x tokens) adds its column x."""
    rows = [W[token] + dW[:, token] for token in x.flatten().tolist()]
    return torch.stack(rows).reshape(*x.shape, W.shape[1])


def conv2d(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    dW: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """y_o = b_o + sum over channel c and tap (i, j) of (W + dW)_ocij x_c, shifted by the tap.

    Row o of dW lists channels, then the kernel's rows and columns. Output o reads its group's channels only.
    """
    batch, _, height, width = x.shape
    outputs, channels, kernel_height, kernel_width = W.shape
    padded = x.new_zeros(batch, x.shape[1], height + 2 * padding[0], width + 2 * padding[1])
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    rows = (padded.shape[2] - dilation[0] * (kernel_height - 1) - 1) // stride[0] + 1
    cols = (padded.shape[3] - dilation[1] * (kernel_width - 1) - 1) // stride[1] + 1

    def channel(o: int) -> Tensor:
        first_channel = o // (outputs // groups) * channels
        total = b[o]
        for c in range(channels):
            for i in range(kernel_height):
                for j in range(kernel_width):
                    weight = W[o, c, i, j] + dW[o, (c * kernel_height + i) * kernel_width + j]
                    seen = padded[
                        :, first_channel + c, i * dilation[0] :: stride[0], j * dilation[1] :: stride[1]
                    ]
                    total = total + weight * seen[:, :rows, :cols]
        return total

    return torch.stack([channel(o) for o in range(outputs)], dim=1)
