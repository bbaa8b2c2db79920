"""A container gives back what it was given, bit for bit, and refuses a file with one wrong bit."""

import json
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import AdapterFileError
from rankfold.store import strict_json
from rankfold.store.container import Container, decode, encode, read
from rankfold.store.tensors import DTYPES, bytes_of

SMALL = Container(
    "adapter",
    {"format": 1, "note": "é"},
    {
        "layer.up": torch.tensor([[0.5, -0.0], [float("nan"), 1e-45]]),
        "layer.flags": torch.tensor([True, False, True]),
        "layer.scale": torch.tensor(2.0, dtype=torch.bfloat16),
        "layer.empty": torch.empty((3, 0), dtype=torch.int64),
        "layer.odd": torch.tensor([1, -2], dtype=torch.int32),
    },
)


def same(left, right):
    """Whether two containers are the same in every bit."""
    return (
        (left.type, dict(left.header)) == (right.type, dict(right.header))
        and list(left.tensors) == list(right.tensors)
        and all(
            (one.dtype, one.shape, bytes_of(one)) == (other.dtype, other.shape, bytes_of(other))
            for one, other in zip(left.tensors.values(), right.tensors.values(), strict=True)
        )
    )


def test_container_comes_back_in_every_bit():
    assert same(decode(encode(SMALL)), SMALL)


def test_tensors_that_come_back_may_be_written_to():
    tensors = decode(encode(SMALL)).tensors
    tensors["layer.odd"][0] = 9
    assert tensors["layer.odd"].tolist() == [9, -2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back(dtype):
    values = torch.arange(48, dtype=torch.uint8).view(DTYPES[dtype] if dtype != "BOOL" else torch.uint8)
    values = values > 8 if dtype == "BOOL" else values
    container = Container("adapter", {}, {"odd": torch.ones(1, dtype=torch.int8), "x": values})
    assert same(decode(encode(container)), container)


def test_type_that_cannot_be_kept_is_refused():
    with pytest.raises(AdapterFileError, match=r"unknown type 'torch\.complex64'"):
        encode(Container("adapter", {}, {"x": torch.zeros(1, dtype=torch.complex64)}))


@given(
    st.dictionaries(
        st.text("abc._", min_size=1, max_size=6).filter(lambda name: set(name) != {"."}),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    ),
)
def test_any_shapes_come_back(entries):
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in entries.items()}
    container = Container("adapter", {"n": len(entries)}, tensors)
    assert same(decode(encode(container)), container)


def test_equal_containers_give_equal_bytes():
    other = Container("adapter", {"note": "é", "format": 1}, dict(SMALL.tensors))
    assert encode(other) == encode(SMALL)


def test_every_flipped_bit_is_found():
    data = encode(SMALL)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(AdapterFileError):
                decode(bytes(damaged))


def test_every_cut_and_every_longer_file_is_refused():
    data = encode(SMALL)
    for length in range(len(data)):
        with pytest.raises(AdapterFileError):
            decode(data[:length])
    with pytest.raises(AdapterFileError):
        decode(data + b"\0")


def test_file_comes_back_and_a_missing_one_is_an_error_with_its_name(tmp_path):
    (tmp_path / "one").write_bytes(encode(SMALL))
    assert same(read(tmp_path / "one"), SMALL)
    with pytest.raises(AdapterFileError, match="absent"):
        read(tmp_path / "absent")


@pytest.mark.parametrize("name", ["", "a\0b", "/etc", "..", "a/../b", "C:x", "\\x", "x\n", "a" * 2000, "./a"])
def test_name_that_is_none_is_refused_before_it_is_written(name):
    with pytest.raises(AdapterFileError):
        encode(Container("adapter", {}, {name: torch.zeros(1)}))


def test_header_that_could_not_be_read_again_is_not_written():
    for values in (
        {"x": float("nan")},
        {"x": "a" * strict_json.MOST_BYTES},
        {"x": [[]] * strict_json.MOST_BRACKETS},
    ):
        with pytest.raises(AdapterFileError):
            encode(Container("adapter", values, {}))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        "[NaN]",
        "[1e999]",
        "[-Infinity]",
        "[" * 100_000,
        '{"a":' * 100_000,
        '"\\ud800"',
        "[1,]",
        "",
        "1" * 5000,
    ],
    ids=lambda text: text[:12],
)
def test_json_that_is_not_strict_is_refused(text):
    with pytest.raises(AdapterFileError):
        strict_json.parse(text.encode())


def test_compressed_bytes_are_never_expanded_beyond_what_they_say():
    bomb = zlib.compress(b"0" * (256 << 20))
    for claimed in (2, strict_json.MOST_BYTES, 256 << 20, -1):
        with pytest.raises(AdapterFileError):
            strict_json.expand(bomb, claimed)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=9))
def test_header_comes_back(values):
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except ValueError:
        return
    assert strict_json.expand(*strict_json.compress(values)) == values
