"""The counter-based generator of frozen factors and initial values, the only randomness of an adapter.

An entry depends on a seed, a name, its row and its column, and on nothing else: not on the device, the torch
version, the process, the size of the matrix, or how much was drawn before. This is a file format (a frozen
factor is stored as its seed), so nothing here may change its output; golden values and the published test
vectors of Philox are in the tests.

Bits come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11). Every
entry is an integer that float32 holds exactly, times one float32 scale: a single rounding, which IEEE 754
fixes on every platform.
"""

import hashlib
import math
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, UInt64
from numpy.typing import NDArray
from torch import Tensor

Distribution = Literal["uniform", "normal"]

Words = UInt64[np.ndarray, "*#shape"]
"""Numbers below 2**32, of 64 bits, since the product of two has as many and wraps by definition."""

Pairs = UInt64[np.ndarray, "*#shape"]
"""Two words each, the first in the upper half."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK_32 = 0xFFFFFFFF
_WORDS = 4
_HALF, _QUARTER = np.uint64(32), np.uint64(16)
_LOW_HALVES = np.uint64(0x0000FFFF0000FFFF)
_ADD_HALVES = np.uint64(0x0000000100000001)

_BLOCK, _BLOCK_COLS = 16384, 512
"""Entries of a block, whose arrays stay in a core's cache, and its columns at most."""

# The last counter word separates the two distributions, so that they never read the same bits.
_UNIFORM_DOMAIN, _NORMAL_DOMAIN, _ORDER_DOMAIN = 0, 1, 2

# A normal entry is the sum of eight 16-bit integers: mean 8 * 65535 / 2, variance 8 * (65536**2 - 1) / 12.
_NORMAL_MEAN = 4 * 65535
_NORMAL_STD = math.sqrt(8 * (65536**2 - 1) / 12)
_UNIFORM_STD = 1 / math.sqrt(3)


def random_matrix(
    rows: int, cols: int, *, seed: int, name: str, std: float, distribution: Distribution = "normal"
) -> Float[Tensor, "{rows} {cols}"]:
    """Return a float32 matrix on the CPU whose entries are centred with standard deviation `std`.

    `normal` is the standardised sum of eight uniform 16-bit integers (excess kurtosis -0.15, |z| at most
    4.9): close to a Gaussian and exact on every platform, which a transcendental function would not be.

    Args:
        rows: Number of rows.
        cols: Number of columns. The first columns of a wider matrix of the same seed and name are the same.
        seed: Any integer.
        name: What the matrix is for; equal seeds with different names are independent.
        std: Standard deviation of an entry.
        distribution: `uniform` on (-sqrt(3) std, sqrt(3) std), or `normal` as described.
    """
    values = np.zeros((rows, cols), dtype=np.float32)
    if std == 0:
        return _as_tensor(values)
    if distribution == "uniform":
        draw, unit = _uniform_integers, _UNIFORM_STD * 2**24
    else:
        draw, unit = _normal_integers, _NORMAL_STD
    key, scale = _key(seed, name), np.float32(std / unit)
    width = min(cols, _BLOCK_COLS)
    height = _BLOCK // width
    for row in range(0, rows, height):
        for col in range(0, cols, width):
            bottom, right = min(row + height, rows), min(col + width, cols)
            integers = draw(row, col, bottom - row, right - col, key)
            np.multiply(integers, scale, out=values[row:bottom, col:right])
    return _as_tensor(values)


def random_order(size: int, *, seed: int, name: str) -> Int64[Tensor, " {size}"]:
    """Return a permutation of `size` positions: the order that sorts 64 random bits per position."""
    left, _ = _pairs(0, 0, 1, size, _key(seed, name), _ORDER_DOMAIN)
    # 63 bits keep the sort signed; a stable sort makes even a tie the same everywhere.
    keys = (left[0] & np.uint64(2**63 - 1)).astype(np.int64)
    return torch.sort(_as_tensor(keys), stable=True).indices


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Pairs, Pairs]:
    """Return Philox4x32-10 of each counter.

    Args:
        counter: Four words. Their shapes are broadcast, and as long as a word depends on the row or on the
            column alone, it is computed once for it.
        key: Two words.

    Returns:
        The first and the second word of each result, and the third and the fourth.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    left, right = c1 << _HALF, c3 << _HALF
    for _ in range(_ROUNDS - 1):
        left, right = _round(c0, left, c2, right, k0, k1)
        c0, left, c2, right = left >> _HALF, left << _HALF, right >> _HALF, right << _HALF
        k0, k1 = (k0 + _WEYL[0]) & _MASK_32, (k1 + _WEYL[1]) & _MASK_32
    return _round(c0, left, c2, right, k0, k1)


def _round(c0: Words, c1: Pairs, c2: Words, c3: Pairs, k0: int, k1: int) -> tuple[Pairs, Pairs]:
    """Return the pairs of one round; the second and the fourth word, which enter it, are shifted up.

    A product is a pair already: its upper half is mixed with a word and the key, its lower one is a word.
    """
    left = _MULTIPLIERS[1] * c2 ^ (c1 ^ np.uint64(k0 << 32))
    right = _MULTIPLIERS[0] * c0 ^ (c3 ^ np.uint64(k1 << 32))
    return left, right


def _key(seed: int, name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _pairs(
    row: int, col: int, rows: int, cols: int, key: tuple[int, int], domain: int
) -> tuple[Pairs, Pairs]:
    """Return the four words, in pairs, at every row and column of a block that begins at `row` and `col`."""
    row_words = np.arange(row, row + rows, dtype=np.uint64)[:, None]
    col_words = np.arange(col, col + cols, dtype=np.uint64)[None]
    zero, last = np.zeros((1, 1), np.uint64), np.full((1, 1), domain, np.uint64)
    return philox((col_words, row_words, zero, last), key)


def _uniform_integers(
    row: int, col: int, rows: int, cols: int, key: tuple[int, int]
) -> Int32[np.ndarray, "{rows} {cols}"]:
    """Return odd integers, uniform on (-2**24, 2**24); a counter serves four neighbouring columns."""
    left, right = _pairs(row, col // _WORDS, rows, -(-cols // _WORDS), key, _UNIFORM_DOMAIN)
    words = np.empty((*left.shape, _WORDS), dtype=np.uint32)
    words[..., 0], words[..., 1], words[..., 2], words[..., 3] = left >> _HALF, left, right >> _HALF, right
    top_24_bits = (words.reshape(rows, -1)[:, :cols] >> np.uint32(8)).astype(np.int32)
    return 2 * top_24_bits + np.int32(1 - 2**24)


def _normal_integers(
    row: int, col: int, rows: int, cols: int, key: tuple[int, int]
) -> Int32[np.ndarray, "{rows} {cols}"]:
    """Return the sums of the eight halves of the four words at every row and column, less their mean."""
    left, right = _pairs(row, col, rows, cols, key, _NORMAL_DOMAIN)
    # The sums of the halves of two words lie side by side in 32 bits each, of which they need 18.
    sums = (left & _LOW_HALVES) + (right & _LOW_HALVES)
    sums += (left >> _QUARTER) & _LOW_HALVES
    sums += (right >> _QUARTER) & _LOW_HALVES
    return (sums * _ADD_HALVES >> _HALF).astype(np.int32) - np.int32(_NORMAL_MEAN)


def _as_tensor(array: NDArray[Any]) -> Tensor:
    return cast(Any, torch).from_numpy(array)
