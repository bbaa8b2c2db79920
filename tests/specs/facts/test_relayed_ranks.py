"""Relayed LoRA says that any assignment of the entries will do. Row by row it caps the rank."""

import pytest
import torch

from tests.specs.wide import wide_adapter

# Dimensions and rank for which Figure 4 sweeps k: RoBERTa-large, by its counts.
SIZE = {"inputs": 1024, "outputs": 1024, "r": 64}


def rank_of_change(**options):
    # In float32 the rounding of the product would pass for rank.
    adapter = wide_adapter("relayed_lora", **SIZE, init_weights=False, **options).double()
    return [torch.linalg.matrix_rank(matrix).item() for matrix in (adapter.down(), adapter.up())]


@pytest.mark.filterwarnings("ignore:map='row_major':rankfold.RankfoldWarning")
@pytest.mark.parametrize("k", [4, 8])
def test_row_major_caps_the_rank_at_four_k(k):
    assert rank_of_change(k=k, reading="paper") == [4 * k, 4 * k]


def test_row_major_does_not_cap_the_rank_at_sixteen_when_four_k_is_the_rank():
    assert rank_of_change(k=16, reading="paper") == [64, 64]


@pytest.mark.parametrize("order", ["strided", "permuted"])
@pytest.mark.parametrize("k", [1, 4])
def test_other_maps_keep_the_full_rank(order, k):
    assert rank_of_change(k=k, map=order) == [64, 64]


def test_row_major_warns_with_the_rank_and_the_way_out():
    with pytest.warns(
        UserWarning, match=r"caps the rank of the (down|up) factor .* at 16; map='strided' does not"
    ):
        rank_of_change(k=4, reading="paper")
