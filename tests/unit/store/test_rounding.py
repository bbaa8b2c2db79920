"""Rounded adapters are as close as the type allows, small, and the same from every form."""

import math
from fractions import Fraction

import numpy
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.store.rounding import (
    BLOCK,
    GRIDS,
    RoundedEntry,
    choose_grids,
    relative_error,
    restore,
    round_adapter,
)
from rankfold.store.size import explain
from rankfold.store.tensors import bytes_of
from tests.support.peft_methods import METHODS, save_peft, tiny_base
from tests.support.stored import adapter_of, make_adapter, same

OWN = "x.lora_A"
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def there_and_back(tensor, dtype="int8"):
    """Return a tensor after rounding, in its own type."""
    adapter = adapter_of({OWN: tensor})
    back = restore(round_adapter(adapter, dtype))
    if dtype in GRIDS:
        assert back.layout == adapter.layout
    return back.tensors[OWN].to(tensor.dtype)


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
    for begin in range(0, count, BLOCK) if grid else ():
        block = slice(begin, begin + BLOCK)
        largest = tensor[block].double().abs().max()
        # Clipping is chosen only where the whole block gains by it.
        steps = 2 if rounding == "int2" else 1
        bound = largest * steps / (2 * grid.largest) * 1.01
        assert error[block].square().mean().sqrt() <= bound + own[block].max()
        assert (error[block] <= max(bound, 0.32 * largest) + own[block]).all()


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
    with pytest.raises(AdapterFileError, match="lora_A' has values"):
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


@pytest.mark.filterwarnings("ignore")  # of PEFT, about its own methods
@pytest.mark.parametrize("method", METHODS)
def test_adapter_of_any_method_in_int4_is_smaller_and_loads_as_before(method, tmp_path):
    """By PEFT alone, from the folder that the packed file unpacks to."""
    folder = save_peft(tmp_path / "adapter", METHODS[method]())
    packed = rankfold.pack_adapter(folder, tmp_path / "packed", dtype="int4")
    rankfold.unpack_adapter(tmp_path / "packed", tmp_path / "again")
    outputs = [outputs_of(path) for path in (folder, tmp_path / "again")]
    assert all(output.isfinite().all() for output in outputs)
    assert packed.certificate.largest < 0.5
    # A part of these is exact: the logits that choose vectors, and tensors of a few numbers.
    most = 1 if method in ("vblora", "adamss") else 0.5
    sizes = [explain(path).learned_bytes for path in (folder, tmp_path / "packed")]
    assert sizes[1] < most * sizes[0]


def outputs_of(folder):
    """Return the outputs of PEFT's model with an adapter."""
    torch.manual_seed(0)
    model = peft.PeftModel.from_pretrained(tiny_base(), folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.01), ("int4", 0.12), ("int3", 0.22), ("int2", 0.4)])
def test_numbers_take_the_bits_of_the_type_and_half_a_bit_for_scales(dtype, error, tmp_path):
    adapter = make_adapter(size=6400)
    exact = rankfold.pack_adapter(adapter, tmp_path / "exact")
    packed = rankfold.pack_adapter(adapter, tmp_path / dtype, dtype=dtype)
    assert packed.learned_bytes == exact.learned_bytes * GRIDS[dtype].bits_per_number / 32
    assert packed.file_bytes < packed.learned_bytes + 1024
    assert 0 < packed.relative_error < error


@settings(max_examples=300)
@given(st.integers(0, 200), st.sampled_from(list(GRIDS)), st.integers(-130, 120), st.integers(0, 99))
def test_rounded_numbers_are_rounded_to_themselves(count, dtype, power, seed):
    """Around zero, around one, and in between, where either could be chosen."""
    generator = torch.Generator().manual_seed(seed)
    power = power if seed % 4 < 2 else power // 10
    numbers = torch.randn(count, generator=generator) * 2.0**power + seed % 4 / 2
    once = GRIDS[dtype].round(numbers)
    assert bytes_of(GRIDS[dtype].round(once)) == bytes_of(once)
    assert bytes_of(there_and_back(numbers, dtype)) == bytes_of(once if count >= 8 else numbers)


def decode_exactly(text, data):
    """Return the numbers of an entry as fractions, from the description of the format alone."""
    origin, (grid, _, shape) = int(text.startswith("1+")), text.removeprefix("1+").split(":")
    bits, count = int(grid[3:]), math.prod(map(int, shape.split("x")))
    stream, numbers = int.from_bytes(data, "little"), []
    scales = data[-(-count * bits // 8) :]
    for index in range(count):
        code = stream >> bits * index & (1 << bits) - 1
        step = code - (1 << bits) * (code >> bits - 1)
        low, high = scales[index // 32 * 2 :][:2]
        sign, exponent, mantissa = high >> 7, (high & 127) << 1 | low >> 7, low & 127
        assert sign == 0
        scale = Fraction(128 + mantissa, 128) * Fraction(2) ** (exponent - 127) if exponent else 0
        numbers.append(origin + (2 * step + 1 if bits == 2 else step) * scale)
    return numbers


@given(st.integers(8, 150), st.sampled_from(list(GRIDS)), st.integers(-120, 120), st.integers(0, 99))
def test_decoding_is_one_exact_product_whoever_does_it(count, dtype, power, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, generator=generator) * 2.0**power + seed % 2
    small = round_adapter(adapter_of({OWN: numbers}), dtype)
    text = small.layout.metadata["rankfold.rounded"].split()[1]
    expected = decode_exactly(text, bytes_of(small.tensors[OWN]))
    decoded = restore(small).tensors[OWN]
    # float32 of a fraction is the nearest float64's nearest only where the first is exact, as products are.
    assert decoded.tolist() == [float(numpy.float32(float(number))) for number in expected]
    if not text.startswith("1+"):
        assert all(
            Fraction(number) == exact for number, exact in zip(decoded.tolist(), expected, strict=True)
        )


def test_decoding_does_not_depend_on_threads_nor_on_small_numbers_being_flushed():
    numbers = torch.randn(9999, generator=torch.Generator().manual_seed(0)) * 2.0**-118
    small = round_adapter(adapter_of({OWN: numbers}), "int4")
    expected, threads = bytes_of(restore(small).tensors[OWN]), torch.get_num_threads()
    try:
        torch.set_flush_denormal(True)
        torch.set_num_threads(2)
        assert bytes_of(restore(small).tensors[OWN]) == expected
        assert bytes_of(restore(round_adapter(adapter_of({OWN: numbers}), "int4")).tensors[OWN]) == expected
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("text", "data", "numbers"),
    [
        ("int8:F32:2x4", "007f81ff0140c001 c03f", [[0, 190.5, -190.5, -1.5], [1.5, 96, -96, 1.5]]),
        ("int4:F32:9", "10f7894501 0040", [0, 2, 14, -2, -14, -16, 10, 8, 2]),
        ("1+int3:F32:8", "88c6fa 803e", [1, 1.25, 1.5, 1.75, 0, 0.25, 0.5, 0.75]),
        ("int2:F16:8", "e41b 003f", [0.5, 1.5, -1.5, -0.5, -0.5, -1.5, 1.5, 0.5]),
    ],
)
def test_these_bytes_are_these_numbers(text, data, numbers):
    """Fixed bytes give fixed numbers: the format, written down."""
    entry = RoundedEntry.read(text)
    assert entry.decode(torch.tensor(list(bytes.fromhex(data)), dtype=torch.uint8)).tolist() == numbers
    assert entry.spell() == text


def test_numbers_around_one_are_rounded_around_it():
    numbers = 1 + 0.01 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    small = round_adapter(adapter_of({"x.ia3_l": numbers}, peft_type="IA3"), "int4")
    assert small.layout.metadata["rankfold.rounded"] == "int4 1+int4:F32:64x1"
    change = restore(small).tensors["x.ia3_l"] - numbers
    assert change.norm() < 0.12 * (numbers - 1).norm()


def test_what_is_rounded_and_what_is_exact():
    """The rule, for each kind of tensor that PEFT's methods and rankfold's save."""
    wide = torch.zeros(2, 64)
    kinds = {
        "x.q.lora_A.weight": "int3",
        "x.q.lora_B.weight": "int3",
        "x.q.rankfold_up.weight": "int3",
        "x.q.hada_w1_a": "int3",
        "x.q.vera_lambda_b": "int3",
        "vera_A": "int3",
        "x.classifier.dense.weight": "int8",
        "x.embed_tokens.base_layer.weight": "int8",
        "x.classifier.original.lora_A.weight": "int8",
        "x.q.rankfold_router.weight": None,
        "x.q.vera_router.weight": None,
        "x.classifier.out_proj.bias": None,
        "x.LayerNorm.weight": None,
        "x.q.lora_magnitude_vector": None,
        "x.q.lora_scale": None,
        "x.q.vera_indices": None,
    }
    vectors = ("bias", "LayerNorm.weight", "vector", "lambda_b")
    tensors = {name: wide[0] if name.endswith(vectors) else wide for name in kinds}
    tensors |= {"x.q.vera_indices": wide.long(), "x.q.lora_scale": torch.ones(7)}
    choice = choose_grids(tensors, "VERA", ["classifier"], GRIDS["int3"])
    assert {name: grid and grid.name for name, grid in choice.items()} == kinds


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
