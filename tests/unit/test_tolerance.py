"""A bound that nothing can break proves nothing."""

import pytest
import torch

from tests.support.tolerance import RELATIVE_RMS, assert_close

BOUNDS = pytest.mark.parametrize(("dtype", "bound"), RELATIVE_RMS.items(), ids=str)


def values(dtype):
    return torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@BOUNDS
def test_bound_refuses_an_error_ten_times_larger(dtype, bound):
    expected = values(dtype).double()
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(expected * (1 + 10 * bound), expected, dtype=dtype)


@BOUNDS
def test_bound_admits_the_rounding_of_its_dtype(dtype, bound):
    expected = values(torch.float64)
    assert_close(expected.to(dtype), expected)


@BOUNDS
def test_bound_does_not_depend_on_the_scale(dtype, bound):
    expected = 1e-12 * values(dtype).double()
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(expected * (1 + 10 * bound), expected, dtype=dtype)


def test_comparison_refuses_what_a_broadcast_would_hide():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(1, 3), torch.ones(2, 3))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e-30], ids=str)
def test_comparison_with_zero_admits_zero_only(wrong):
    assert_close(torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(torch.full((3,), wrong), torch.zeros(3))


def test_comparison_refuses_nan_on_both_sides():
    nan = torch.full((3,), float("nan"))
    with pytest.raises(AssertionError, match="not finite"):
        assert_close(nan, nan)
