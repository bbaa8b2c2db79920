"""The generator behind frozen factors: a file format, so its bytes are fixed for ever."""

import concurrent.futures
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.factors import initial_matrix
from rankfold.seeding import philox, random_matrix, random_order
from tests.reference import philox as reference

# Counter, key and output of Philox4x32-10, from the known-answer tests that come with Random123.
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}

GOLDEN = [
    ("kaiming", 3, 7, 0, "layer.down", "ddbdaad11961e7fb8b997d26067e038ca12f3deaa046f2451370d042c4c4a5ca"),
    ("kaiming", 64, 1024, 17, "a.b.down", "8d200c14a90dc7e4f632c7f7147b58f8b8810f7010674850fb656100aa2b202c"),
    ("lecun", 5, 5, -3, "", "f2b34cb0a639923cea76739c34bb7fcd2a9a616f5b34fec0df86f86af32a2692"),
    ("islam", 9, 4, 2**70, "x/y", "891cc203ac121bbd0b06458f99f437c7182a6fb0100a6f8d39d30870adb391f9"),
    (
        "islam",
        8,
        768,
        0,
        "encoder.layer.0.down",
        "613fc5e0a08821cf0885146e0a7acfb08be71015538155cf5fe176808b0ddbb7",
    ),
    ("lecun", 1, 1, 0, "é", "bfae13d4bbe466a9e85c5f96531369733437ab53c3a294f0e3b0418cef19c9ea"),
]

DISTRIBUTIONS = pytest.mark.parametrize("distribution", ["uniform", "normal"])


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def draw(rows=5, cols=9, *, seed=3, name="layer.down", std=0.5, distribution="normal"):
    return random_matrix(rows, cols, seed=seed, name=name, std=std, distribution=distribution)


def words_of(counter, key):
    pairs = philox(tuple(np.array([word], dtype=np.uint64) for word in counter), key)
    return [word for pair in pairs for word in divmod(int(pair[0]), 2**32)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert " ".join(f"{word:08x}" for word in words_of(counter, key)) == expected


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_philox_equals_plain_integer_arithmetic(counter, key):
    assert words_of(counter, key) == reference.philox(counter, key)


@DISTRIBUTIONS
@given(
    rows=st.integers(1, 80),
    cols=st.integers(1, 1200),
    seed=st.integers(),
    name=st.text(max_size=8),
    std=st.floats(1e-6, 1e6),
    data=st.data(),
)
def test_every_entry_is_that_of_plain_integers_whatever_the_size(
    distribution, rows, cols, seed, name, std, data
):
    options = {"seed": seed, "name": name, "std": std, "distribution": distribution}
    matrix = random_matrix(rows, cols, **options)
    places = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1)), max_size=20))
    for row, col in [*places, (rows - 1, cols - 1)]:
        assert matrix[row, col].item() == reference.entry(row, col, **options)


@pytest.mark.parametrize(("initial", "rows", "cols", "seed", "name", "expected"), GOLDEN)
def test_matrix_has_its_golden_bytes(initial, rows, cols, seed, name, expected):
    assert sha256(initial_matrix(initial, rows, cols, seed=seed, name=name)) == expected


def test_order_has_its_golden_bytes():
    assert (
        sha256(random_order(6241, seed=0, name="relay.6241"))
        == "ce87bb0bfb1f0e3574458b8b43eec81fad0de565cd87814ff8b288888b59d9af"
    )
    assert random_order(9, seed=0, name="relay.9").tolist() == [0, 7, 2, 8, 5, 6, 1, 3, 4]


@DISTRIBUTIONS
def test_matrix_is_the_same_in_a_fresh_process(distribution):
    program = (
        "import sys; from rankfold.seeding import random_matrix;"
        f"m = random_matrix(5, 9, seed=3, name='layer.down', std=0.5, distribution={distribution!r});"
        "sys.stdout.buffer.write(m.numpy().tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == draw(distribution=distribution).numpy().tobytes()


@DISTRIBUTIONS
@given(
    rows=st.integers(1, 9), cols=st.integers(1, 9), more_rows=st.integers(0, 5), more_cols=st.integers(0, 5)
)
def test_matrix_is_the_corner_of_every_larger_one(distribution, rows, cols, more_rows, more_cols):
    larger = draw(rows + more_rows, cols + more_cols, distribution=distribution)
    assert torch.equal(draw(rows, cols, distribution=distribution), larger[:rows, :cols])


@DISTRIBUTIONS
def test_matrix_ignores_the_default_dtype_and_device_and_the_global_generator(distribution):
    expected = draw(distribution=distribution)
    state = torch.random.get_rng_state()
    previous = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            assert torch.equal(draw(distribution=distribution), expected)
    finally:
        torch.set_default_dtype(previous)
    with torch.device("meta"):
        in_context = draw(distribution=distribution)
        order = random_order(20, seed=0, name="x")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = draw(distribution=distribution)
    assert torch.equal(in_context, expected)
    assert torch.equal(under_autocast, expected)
    assert torch.equal(order, random_order(20, seed=0, name="x"))
    assert (expected.dtype, expected.device.type) == (torch.float32, "cpu")
    assert torch.equal(torch.random.get_rng_state(), state), "nothing is drawn from torch's generator"


def test_matrices_do_not_depend_on_threads_or_on_order():
    names = [f"layer.{index}" for index in range(12)]
    alone = [draw(name=name) for name in names]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: draw(name=name), reversed(names)))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        many = draw(300, 300)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, reversed(together), strict=True))
    assert torch.equal(many, draw(300, 300))


@DISTRIBUTIONS
def test_matrix_has_the_asked_moments(distribution):
    matrix = draw(500, 400, std=0.5, distribution=distribution).double()
    count = matrix.numel()
    kurtosis = {"uniform": 1.8, "normal": 2.85}[distribution]
    assert abs(matrix.mean()) < 5 * 0.5 / count**0.5
    assert matrix.std().item() == pytest.approx(0.5, rel=0.01)
    assert (matrix / 0.5).pow(4).mean().item() == pytest.approx(kurtosis, rel=0.03)
    assert abs((matrix / 0.5).pow(3).mean()) < 0.05
    limit = {"uniform": 3**0.5, "normal": 4.9}[distribution]
    assert matrix.abs().max() <= limit * 0.5


@DISTRIBUTIONS
def test_neighbours_in_a_matrix_are_not_correlated(distribution):
    matrix = draw(400, 400, std=1.0, distribution=distribution).double()
    for shift, axis in ((1, 0), (1, 1), (2, 1), (4, 1)):
        assert abs((matrix * matrix.roll(shift, axis)).mean()) < 5 / 400


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"seed": -3}, {"seed": 2**80}, {"name": "layer.up"}, {"distribution": "uniform"}],
    ids=str,
)
def test_matrices_of_another_seed_name_or_distribution_are_independent(other):
    one, two = draw(200, 200, std=1.0), draw(200, 200, **{"std": 1.0, **other})
    assert abs((one * two).mean()) < 5 / 200


@given(seed=st.integers(), name=st.text(max_size=8), size=st.integers(1, 60))
def test_order_is_a_permutation(seed, name, size):
    assert sorted(random_order(size, seed=seed, name=name).tolist()) == list(range(size))
