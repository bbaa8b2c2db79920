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
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Distribution = Literal["uniform", "normal"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK_32 = 0xFFFFFFFF
_MASK_16 = 0xFFFF
_WORDS = 4

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
    if std == 0:
        return torch.zeros(rows, cols, device="cpu", dtype=torch.float32)
    if distribution == "uniform":
        integers, unit = _uniform_integers(rows, cols, seed, name), _UNIFORM_STD * 2**24
    else:
        integers, unit = _normal_integers(rows, cols, seed, name), _NORMAL_STD
    return integers.to(torch.float32) * torch.tensor(std / unit, dtype=torch.float32, device="cpu")


def random_order(size: int, *, seed: int, name: str) -> Int64[Tensor, " {size}"]:
    """Return a permutation of `size` positions: the order that sorts 64 random bits per position."""
    words = _blocks(1, size, seed, name, _ORDER_DOMAIN)
    # 63 bits keep the sort signed; a stable sort makes even a tie the same everywhere.
    keys = ((words[0] & 0x7FFFFFFF) << 32) | words[1]
    return torch.sort(keys.reshape(-1), stable=True).indices


def philox(
    counter: tuple[Int64[Tensor, "*n"], Int64[Tensor, "*n"], Int64[Tensor, "*n"], Int64[Tensor, "*n"]],
    key: tuple[int, int],
) -> tuple[Int64[Tensor, "*n"], Int64[Tensor, "*n"], Int64[Tensor, "*n"], Int64[Tensor, "*n"]]:
    """Return Philox4x32-10 of each counter: four words below 2**32 a counter, held in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK_32, (k1 + _WEYL[1]) & _MASK_32
    return c0, c1, c2, c3


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of the product, by halves so that no int64 overflows."""
    low, high = factor * (word & _MASK_16), factor * (word >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & _MASK_16) << 16) | (low & _MASK_16)


def _key(seed: int, name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _blocks(rows: int, cols: int, seed: int, name: str, domain: int) -> tuple[Tensor, ...]:
    """Return the four words of the block at every (row, column), each of shape [rows, cols]."""
    row = torch.arange(rows, dtype=torch.int64, device="cpu").reshape(-1, 1).expand(rows, cols)
    col = torch.arange(cols, dtype=torch.int64, device="cpu").expand(rows, cols)
    return philox((col, row, torch.zeros_like(col), torch.full_like(col, domain)), _key(seed, name))


def _uniform_integers(rows: int, cols: int, seed: int, name: str) -> Tensor:
    """Return odd integers, uniform on (-2**24, 2**24); a block serves four neighbouring columns."""
    words = torch.stack(_blocks(rows, -(-cols // _WORDS), seed, name, _UNIFORM_DOMAIN), dim=-1)
    top_24_bits = words.reshape(rows, -1)[:, :cols] >> 8
    return 2 * top_24_bits + 1 - 2**24


def _normal_integers(rows: int, cols: int, seed: int, name: str) -> Tensor:
    words = _blocks(rows, cols, seed, name, _NORMAL_DOMAIN)
    halves = [half for word in words for half in (word & _MASK_16, word >> 16)]
    return torch.stack(halves).sum(dim=0) - _NORMAL_MEAN
