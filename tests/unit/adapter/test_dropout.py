"""Dropout of what enters an adapter: its frequency and mean, its seed, and what it keeps."""

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rankfold
from rankfold.adapter.module import Dropout


@given(p=st.floats(0, 0.99), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_entries_are_dropped_as_often_as_p_says_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    dropout, x = Dropout(p), torch.ones(301, 333, dtype=dtype)
    dropped = dropout(x)
    assert dropped.dtype == dtype
    assert (dropped == 0).double().mean().item() == pytest.approx(p, abs=5 * (p / x.numel()) ** 0.5 + 2**-16)
    left = dropped[dropped != 0]
    assert left.numel() == 0 or (left == left[0]).all()
    assert torch.equal(dropout.eval()(x), x)


def test_mask_follows_the_seed_of_torch_and_neighbours_are_independent():
    def mask(seed):
        torch.manual_seed(seed)
        return Dropout(0.5).draw(torch.ones(400, 403))[0]

    assert torch.equal(mask(3), mask(3))
    signs = 2 * mask(3).double() - 1
    assert abs((signs * (2 * mask(4).double() - 1)).mean()) < 5 / 400
    for shift, axis in ((1, 0), (1, 1), (2, 1), (4, 1)):
        assert abs((signs * signs.roll(shift, axis)).mean()) < 5 / 400


@pytest.mark.parametrize("method", ["lora", "effilora", "hydra_lora"])
def test_layer_keeps_of_dropout_one_byte_an_entry(method):
    def kept_bytes(dropout):
        layer = nn.Sequential(nn.Linear(256, 64))
        config = rankfold.config(method, target_modules=["0"], r=2, dropout=dropout)
        model = peft.get_peft_model(layer, config).train()
        x, kept = torch.randn(32, 256).requires_grad_(), dict[int, int]()

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(x).sum().backward()
        return sum(kept.values())

    assert kept_bytes(0.1) <= kept_bytes(0.0) + 32 * 256 + 1024
