"""Batches without rows and padding tokens are treated as the base layer treats them."""

import peft
import pytest
import torch

import rankfold
from rankfold.presets import discover
from tests.support.toys import WIDTH, adapted, preset_configs


@pytest.mark.parametrize("method", sorted(discover()))
@pytest.mark.parametrize("shape", [(0, WIDTH), (0, 5, WIDTH), (2, 0, WIDTH)])
def test_batch_without_rows_goes_through_every_method(method, shape):
    block = adapted(preset_configs()[method]).base_model.model.blocks[0]
    assert block(torch.zeros(shape, dtype=torch.float64)).shape == shape


def test_padding_of_an_embedding_is_not_learned():
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Embedding(10, 6, padding_idx=0))
    model = peft.get_peft_model(base, rankfold.config("lora", r=2, target_modules=["0"]))
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    ids = torch.tensor([[0, 1, 2, 0]])
    for _ in range(3):
        (model(ids) - 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not model(torch.tensor([0])).any()
    with model.disable_adapter():
        untrained = model(torch.tensor([1]))
    assert (model(torch.tensor([1])) - untrained).abs().max() > 1e-3
