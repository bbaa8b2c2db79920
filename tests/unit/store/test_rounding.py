"""Rounded adapters are as close as the type allows, small, and the same from every form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.store.rounding import GRIDS, relative_error, restore, round_adapter
from rankfold.store.size import explain
from tests.support.peft_methods import METHODS, save_peft
from tests.support.stored import adapter_of, make_adapter, same

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def there_and_back(tensor, dtype="int8"):
    """Return a tensor after rounding, in its own type."""
    adapter = adapter_of({"x": tensor})
    back = restore(round_adapter(adapter, dtype))
    if dtype in GRIDS:
        assert back.layout == adapter.layout
    return back.tensors["x"].to(tensor.dtype)


@given(st.integers(0, 200), DTYPES, st.sampled_from(["bf16", *GRIDS]), st.integers(-6, 6), st.integers(0, 9))
def test_error_of_a_number_is_bounded_by_the_type(count, dtype, rounding, power, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(count, generator=generator) * 2.0**power).to(dtype)
    back = there_and_back(tensor, rounding)
    if dtype == torch.bfloat16 and rounding == "bf16":
        assert torch.equal(back, tensor)
    error = (back.double() - tensor.double()).abs()
    # The result is rounded once more, to the tensor's own type.
    own = torch.finfo(dtype).eps * tensor.double().abs() + torch.finfo(dtype).tiny
    if rounding == "bf16":
        assert (error <= 2**-8 * tensor.double().abs() + own).all()
    grid = GRIDS.get(rounding)
    for begin in range(0, count, grid.block) if grid else ():
        block = slice(begin, begin + grid.block)
        largest = tensor[block].double().abs().max()
        # Half a step, and what the largest numbers lose where a scale was rounded down.
        bound = largest / (2 * grid.largest) + largest * torch.finfo(grid.scale).eps / 2
        assert (error[block] <= bound * 1.001 + own[block]).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 2.0])
@pytest.mark.parametrize("shape", [(), (70,), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", GRIDS)
def test_zeros_and_the_smallest_numbers_stay_finite(dtype, shape, value):
    back = there_and_back(torch.full(shape, value), dtype)
    assert back.shape == shape
    assert back.isfinite().all()


@pytest.mark.parametrize("dtype", ["bf16", *GRIDS])
def test_integers_and_bytes_are_kept(dtype):
    for tensor in (torch.arange(100), torch.arange(100).to(torch.int8), torch.ones(9, dtype=torch.bool)):
        assert torch.equal(there_and_back(tensor, dtype), tensor)


@pytest.mark.parametrize(("value", "dtype"), [(math.inf, "int8"), (math.nan, "int4"), (3.4e38, "bf16")])
def test_number_that_the_type_cannot_hold_is_refused(value, dtype):
    with pytest.raises(AdapterFileError, match="'x' has values"):
        there_and_back(torch.full((9,), value), dtype)


def test_relative_error_is_the_largest_of_a_tensor():
    exact = adapter_of({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0]), "c": torch.zeros(1)})
    other = adapter_of({"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.0]), "c": torch.zeros(1)})
    assert relative_error(exact, other) == pytest.approx(0.1)
    assert relative_error(exact, exact) == 0


def test_numbers_that_are_not_finite_have_no_error():
    exact = adapter_of({"a": torch.tensor([math.nan, math.inf]), "b": torch.tensor([3.0, 4.0, math.nan])})
    other = adapter_of({"a": torch.tensor([math.nan, math.inf]), "b": torch.tensor([3.0, 4.5, math.nan])})
    assert relative_error(exact, exact) == 0
    assert relative_error(exact, other) == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("narrow", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bit_numbers_are_exact_in_a_wider_type(narrow, dtype):
    tensor = torch.arange(-8.0, 8.0).to(narrow)
    assert torch.equal(there_and_back(tensor, dtype).float(), tensor.float())


@pytest.mark.parametrize("dtype", GRIDS)
def test_adapter_without_tensors_comes_back(dtype, tmp_path):
    adapter = adapter_of({})
    rankfold.pack_adapter(adapter, tmp_path / "packed", dtype=dtype)
    assert same(rankfold.open_adapter(tmp_path / "packed"), adapter)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", *GRIDS])
@pytest.mark.parametrize("method", ["lora", "lily", "unilora", "vera"])
def test_every_form_gives_the_same_rounded_adapter_of_any_method(method, dtype, tmp_path):
    folder = save_peft(tmp_path / "adapter", METHODS[method]())
    packed = rankfold.pack_adapter(folder, tmp_path / "packed", dtype=dtype)
    opened = rankfold.open_adapter(tmp_path / "packed")
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        record = store.put("a", folder, dtype=dtype)
        assert same(store.get("a"), opened)
        assert [same(adapter, opened) for _, adapter in store.get_many(["a"])] == [True]
        store.export(str(tmp_path / "stream"))
        store.import_(str(tmp_path / "stream"), existing="replace")
        assert not list(store.verify())
        assert store.record("a").to_dict() == record.to_dict()
    assert same(rankfold.open_adapter(f"{tmp_path / 'store.db'}#a"), opened)
    rankfold.unpack_adapter(tmp_path / "packed", tmp_path / "again")
    assert same(rankfold.open_adapter(tmp_path / "again"), opened)
    exact = rankfold.open_adapter(folder)
    assert relative_error(exact, opened) == packed.relative_error > 0
    if dtype in GRIDS:
        assert opened.layout == exact.layout
        floats = sum(tensor.nbytes for tensor in exact.tensors.values() if tensor.is_floating_point())
        assert record.bytes < exact.learned_bytes - 0.4 * floats
    explanation = explain(tmp_path / "packed")
    assert sum(part.bytes for part in explanation.parts) == packed.file_bytes
    assert sum(part.bytes for part in explanation.parts if part.tensors) == packed.learned_bytes


@pytest.mark.parametrize(("dtype", "bits", "error"), [("int8", 8.5, 0.01), ("int4", 4.5, 0.12)])
def test_numbers_take_the_bits_of_the_type_and_half_a_bit_for_scales(dtype, bits, error, tmp_path):
    adapter = make_adapter(size=6400)
    exact = rankfold.pack_adapter(adapter, tmp_path / "exact")
    packed = rankfold.pack_adapter(adapter, tmp_path / dtype, dtype=dtype)
    assert packed.learned_bytes == exact.learned_bytes * bits / 32
    assert packed.file_bytes < packed.learned_bytes + 1024
    assert 0 < packed.relative_error < error


def test_routers_keep_every_bit_in_int4():
    tensor = torch.randn(64, 8)
    names = ("q.rankfold_router.weight", "q.rankfold_up.weight")
    back = restore(round_adapter(adapter_of(dict.fromkeys(names, tensor)), "int4"))
    assert [torch.equal(back.tensors[name], tensor) for name in names] == [True, False]


@pytest.mark.parametrize("dtype", GRIDS)
def test_rounded_numbers_are_rounded_to_themselves(dtype):
    once = restore(round_adapter(adapter_of({"x": torch.randn(33, 7)}), dtype))
    again = restore(round_adapter(once, dtype))
    assert relative_error(once, again) < torch.finfo(GRIDS[dtype].scale).eps


def test_int4_decodes_to_these_bits():
    """Fixed bytes give fixed numbers: the format, written down."""
    numbers = torch.tensor([0.0, 7.0, -7.0, 3.0, -1.0])
    small = round_adapter(adapter_of({"x": numbers}), "int4")
    assert small.tensors["x"].tolist() == [0x70, 0x39, 0x0F]
    assert small.tensors["x.int4_scales"].tolist() == [1.0]
    assert small.layout.metadata["rankfold.int4"] == "F32:5"
    assert torch.equal(restore(small).tensors["x"], numbers)


def test_record_is_found_in_a_store_with_the_sign_in_its_name(tmp_path):
    adapter = make_adapter(size=90)
    file = tmp_path / "a#b.db"
    with rankfold.AdapterStore(file) as store:
        store.put("x", adapter)
    assert same(rankfold.open_adapter(f"{file}#x"), adapter)


@pytest.mark.parametrize("dtype", GRIDS)
def test_rounded_adapter_is_not_rounded_again_nor_taken_for_a_folder(dtype, tmp_path):
    small = round_adapter(make_adapter(size=90), dtype)
    with pytest.raises(AdapterFileError, match=f"in {dtype} already"):
        round_adapter(small, "int8")
    small.write(tmp_path / "folder")
    with pytest.raises(AdapterFileError, match=f"in {dtype} already"):
        rankfold.open_adapter(tmp_path / "folder")


def test_tensor_with_a_name_that_is_kept_for_scales_is_refused_by_name():
    with pytest.raises(AdapterFileError, match=r"tensor 'x\.int8_scales'.*rename it"):
        round_adapter(adapter_of({"x.int8_scales": torch.zeros(9)}), "int4")
