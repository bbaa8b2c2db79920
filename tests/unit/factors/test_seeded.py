"""A frozen factor is its seed: nothing to train, nothing to store, the same matrix wherever it goes."""

import copy
import pickle

import torch

from rankfold.factors import Seeded


def make_seeded(rows=3, cols=5):
    factor = Seeded(rows, cols)
    factor.reset(seed=4, name="layer.down")
    return factor


def test_seeded_has_no_parameters_and_an_empty_state():
    factor = make_seeded()
    factor()
    assert list(factor.parameters()) == []
    assert factor.state_dict() == {}
    assert factor.is_frozen


def test_seeded_stays_float32_whatever_the_model_is_cast_to():
    expected = make_seeded()()
    for cast in (torch.bfloat16, torch.float16, torch.float64):
        factor = make_seeded().to(cast).float()
        assert torch.equal(factor(), expected)
        assert make_seeded().to(cast)().dtype == torch.float32


def test_seeded_comes_back_from_the_meta_device():
    expected = make_seeded()()
    assert torch.equal(make_seeded().to("meta").to_empty(device="cpu")(), expected)
    with torch.device("meta"):
        born_there = make_seeded()
    assert torch.equal(born_there.to_empty(device="cpu")(), expected)


def test_seeded_on_the_meta_device_yields_a_meta_matrix():
    matrix = make_seeded().to("meta")()
    assert matrix.is_meta
    assert matrix.shape == (3, 5)


def test_seeded_is_drawn_once_until_it_is_reset():
    factor = make_seeded()
    first = factor()
    assert factor() is first
    factor.reset(seed=5, name="layer.down")
    assert not torch.equal(factor(), first)


def test_pickle_of_seeded_has_no_matrix_and_a_copy_makes_it_anew():
    factor = make_seeded(300, 500)
    factor()
    assert len(pickle.dumps(factor)) < 10_000
    assert torch.equal(copy.deepcopy(factor)._matrix, factor())


def test_seeded_can_be_trained_through_after_a_first_call_in_inference_mode():
    factor = make_seeded()
    with torch.inference_mode():
        factor()
    x = torch.ones(5, requires_grad=True)
    (factor() @ x).sum().backward()
    assert torch.equal(x.grad, factor().sum(dim=0))
