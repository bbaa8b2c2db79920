"""Sharing: one owner for each group, the same module for the others."""

import pytest
import torch

from rankfold.factors import Dense, Pool, Window

# Path, rows and cols of what the layers of a small model ask for.
LAYERS = [
    ("blocks.0.query", 2, 7),
    ("blocks.0.value", 2, 7),
    ("blocks.0.narrow", 2, 4),
    ("blocks.1.query", 2, 7),
    ("blocks.1.value", 2, 7),
    ("blocks.1.narrow", 2, 4),
    ("blocks.1.wide.query", 3, 7),
]


def take_factor(share, layers=LAYERS):
    pool = Pool(share)
    for path, rows, cols in layers:
        pool.reserve(path, rows, cols)
    created = []

    def create(group, rows, cols, experts=None):
        created.append(group)
        factor = Dense(rows, cols, experts=experts)
        factor.reset(seed=0, name=group)
        return factor

    return [pool.take(*layer, create) for layer in layers], created


@pytest.mark.parametrize(
    ("share", "groups"),
    [
        ("none", [0, 1, 2, 3, 4, 5, 6]),
        ("module_type", [0, 1, 2, 0, 1, 2, 3]),
        ("in_features", [0, 0, 1, 0, 0, 1, 2]),
        ("slice", [0, 0, 0, 0, 0, 0, 0]),
        ("entries", [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_pool_gives_one_factor_to_each_group_and_one_owner(share, groups):
    views, created = take_factor(share)
    sources = [view.source if isinstance(view, Window) else view for view, _ in views]
    numbers = list(dict.fromkeys(map(id, sources)))
    assert [numbers.index(id(source)) for source in sources] == groups
    owners = [owned is not None for _, owned in views]
    assert owners == [groups.index(group) == index for index, group in enumerate(groups)]
    assert all(owned is None or owned is source for (_, owned), source in zip(views, sources, strict=True))
    assert len(created) == len(set(created)) == len(set(groups))


@pytest.mark.parametrize("share", ["none", "module_type", "in_features", "slice", "entries"])
def test_pool_gives_every_layer_its_own_size(share):
    views, _ = take_factor(share)
    assert [tuple(view().shape) for view, _ in views] == [(rows, cols) for _, rows, cols in LAYERS]


def test_slice_is_the_corner_of_a_factor_as_large_as_the_largest():
    views, _ = take_factor("slice")
    whole = views[0][1]
    assert (whole.rows, whole.cols) == (3, 7)
    for view, _ in views:
        assert torch.equal(view(), whole()[: view.rows, : view.cols])


def test_entries_of_layers_are_their_own_and_do_not_depend_on_the_order_of_layers():
    (views, _), (reversed_views, _) = take_factor("entries"), take_factor("entries", LAYERS[::-1])
    whole = views[0][1]
    numbers = torch.arange(whole.rows * whole.cols, dtype=torch.float32).view(whole.rows, whole.cols)
    for views_in_order in (views, reversed_views):
        with torch.no_grad():
            views_in_order[0][1].weight.copy_(numbers)
    read = torch.cat([view().flatten() for view, _ in views])
    assert len(read.unique()) == len(read) == sum(rows * cols for _, rows, cols in LAYERS)
    for (view, _), (other, _) in zip(views, reversed(reversed_views), strict=True):
        assert torch.equal(view(), other())


def test_window_passes_gradients_to_its_source_and_has_no_numbers_of_its_own():
    source = Dense(3, 7)
    window = Window(source, 2, 4)
    window().sum().backward()
    assert source.weight.grad.sum() == 8
    assert not source.weight.grad[2:].any()
    assert not source.weight.grad[:, 4:].any()
    assert [id(p) for p in window.parameters()] == [id(source.weight)]


def test_resetting_a_window_leaves_its_source_alone():
    source = Dense(3, 7)
    Window(source, 2, 4).reset(seed=0, name="x")
    assert not source.weight.any()


def test_names_of_groups_do_not_depend_on_the_order_of_layers():
    _, forwards = take_factor("module_type")
    _, backwards = take_factor("module_type", LAYERS[::-1])
    assert sorted(forwards) == sorted(backwards)
