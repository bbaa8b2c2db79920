"""Rounded numbers are as close as the format allows, and what cannot be rounded is kept or refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import SpecError
from rankfold.store.rounding import BLOCK, keep, kept_bytes, relative_error, restore
from rankfold.store.tensors import TensorEntry

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
ROUNDINGS = st.sampled_from([None, "bf16", "int8"])


def there_and_back(tensor, rounding):
    entry = TensorEntry.of("x", tensor)
    kept = keep(entry, tensor, rounding)
    assert len(kept) == kept_bytes(entry, rounding)
    back = restore(entry, memoryview(kept), rounding)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    return back


@given(st.integers(0, 200), DTYPES, ROUNDINGS, st.integers(-6, 6), st.integers(0, 9))
def test_error_of_a_number_is_bounded_by_the_format(count, dtype, rounding, power, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(count, generator=generator) * 2.0**power).to(dtype)
    back = there_and_back(tensor, rounding)
    if rounding is None or (dtype == torch.bfloat16 and rounding == "bf16"):
        assert torch.equal(back, tensor)
    error = (back.double() - tensor.double()).abs()
    # The result is rounded once more, to the tensor's own type.
    own = torch.finfo(dtype).eps * tensor.double().abs() + torch.finfo(dtype).tiny
    if rounding == "bf16":
        assert (error <= 2**-8 * tensor.double().abs() + own).all()
    for begin in range(0, count, BLOCK) if rounding == "int8" else ():
        block = slice(begin, begin + BLOCK)
        assert (error[block] <= tensor[block].double().abs().max() / 254 * 1.001 + own[block]).all()


@pytest.mark.parametrize("rounding", ["bf16", "int8"])
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 2.0])
@pytest.mark.parametrize("shape", [(), (70,), (0, 3)], ids=str)
def test_zeros_and_the_smallest_numbers_stay_finite(shape, value, rounding):
    assert there_and_back(torch.full(shape, value), rounding).isfinite().all()


@pytest.mark.parametrize("rounding", ["bf16", "int8"])
def test_integers_are_kept(rounding):
    tensor = torch.arange(100)
    assert torch.equal(there_and_back(tensor, rounding), tensor)


@pytest.mark.parametrize(("value", "rounding"), [(math.inf, "int8"), (math.nan, "bf16"), (3.4e38, "bf16")])
def test_number_that_cannot_be_rounded_is_refused(value, rounding):
    with pytest.raises(SpecError, match="'x' has numbers that cannot be rounded"):
        there_and_back(torch.tensor([1.0, value]), rounding)


def test_error_is_relative_to_the_largest_number():
    assert relative_error(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -3.0])) == 0.25
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.arange(3), torch.arange(3)) == 0
