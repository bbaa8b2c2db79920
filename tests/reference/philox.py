"""Philox4x32-10 (Salmon et al., 2011) and the entries of a seeded matrix, in plain integers."""

import hashlib
import math
import struct


def philox(counter, key):
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k0, second % 2**32, (first >> 32) ^ c[3] ^ k1, first % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def entry(row, col, *, seed, name, std, distribution):
    """Return an entry of a matrix; a product of two float32 is exact in a Python float, so rounded once."""
    key = struct.unpack("<2I", hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())
    if distribution == "uniform":
        integer = 2 * (philox((col // 4, row, 0, 0), key)[col % 4] >> 8) + 1 - 2**24
        unit = 2**24 / math.sqrt(3)
    else:
        words = philox((col, row, 0, 1), key)
        integer = sum(half for word in words for half in divmod(word, 2**16)) - 4 * 65535
        unit = math.sqrt(8 * (65536**2 - 1) / 12)
    return _float32(integer * _float32(std / unit))


def _float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]
