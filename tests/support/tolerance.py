"""How close is close: the one table of bounds, and the one comparison that reads it.

The measure is the root mean square of the error, relative to that of the expected values: one number for a
whole tensor, independent of its scale. An absolute bound would pass anything that is small enough.
"""

import torch
from torch import Tensor

RELATIVE_RMS: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
"""The largest relative error by the dtype in which the tested code computed."""


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the error over that of `expected`; infinite where only that is zero."""
    error = (actual.double() - expected.double()).square().mean().sqrt()
    size = expected.double().square().mean().sqrt()
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return (error / size).item()


def assert_close(
    actual: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None, what: str = "values"
) -> None:
    """Check that two tensors have one shape and agree within the bound of `dtype`, or of `actual`'s."""
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    assert torch.isfinite(expected).all(), f"{what}: the expected values are not finite"
    bound = RELATIVE_RMS[actual.dtype if dtype is None else dtype]
    error = relative_rms(actual, expected)
    assert error <= bound, f"{what}: relative error {error:.2e} is above {bound:.0e}"
