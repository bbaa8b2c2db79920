"""Compressing keeps what the decomposition of the weight would keep, and says what it loses."""

import pytest
import torch

from rankfold.adapter.build import Builder
from rankfold.adapter.geometry import Linear
from rankfold.adapter.site import Site
from rankfold.errors import SpecError
from rankfold.export.compress import Compression, compress
from rankfold.export.fold import LowRankUpdate, fold_with_gates, relative_error
from rankfold.presets import discover
from tests.support.tolerance import assert_close

LINEAR = Linear(24, 18)


@pytest.fixture
def update():
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(*size, generator=generator).double() for size in ((18, 8), (8, 24)))
    return LowRankUpdate(down, up * 0.6 ** torch.arange(8), LINEAR)


@pytest.mark.parametrize("rank", [1, 3, 8, 20])
def test_compressed_change_is_the_truncated_decomposition(update, rank):
    compressed = compress(update, Compression(rank=rank))
    left, values, right = torch.linalg.svd(update.matrix(), full_matrices=False)
    assert compressed.rank == min(rank, 8)
    assert_close(compressed.matrix(), (left[:, :rank] * values[:rank]) @ right[:rank])


@pytest.mark.parametrize("error", [1e-12, 0.01, 0.1, 0.5, 0.99])
def test_error_bound_is_kept_by_the_smallest_rank(update, error):
    compressed = compress(update, Compression(error=error))
    assert relative_error(compressed, update) <= error
    if compressed.rank > 1:
        smaller = compress(update, Compression(rank=compressed.rank - 1))
        assert relative_error(smaller, update) > error


@pytest.mark.parametrize(
    "fields", [{}, {"rank": 2, "error": 0.1}, {"rank": 0}, {"error": 0.0}, {"error": 1.0}], ids=str
)
def test_compression_without_a_sensible_bound_is_refused(fields):
    with pytest.raises(SpecError, match="give"):
        Compression(**fields)


@pytest.mark.parametrize("name", ["hydra_lora", "lora_moe", "effilora", "mola"])
def test_mean_gates_are_exact_where_gates_are_the_same_for_every_token(name):
    preset = discover()[name]
    spec = preset.spec(r=4, heads=3, **({"top_k": 3} if "top_k" in preset.options else {}))
    spec = spec.with_random_start().at(block=0, blocks=1, is_in_mlp=True)
    adapter = Builder({"layer": Site(LINEAR, spec)}, name="default").build("layer").adapter.double().eval()
    for parameter in adapter.router.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1)).double()
    gates = adapter.router(
        x if spec.router.reads == "input" else adapter.down()[:4] @ torch.ones(24).double()
    )
    product = fold_with_gates(adapter, gates.reshape(-1, 3)[0])
    assert_close(x @ product.matrix().T, adapter(x))
