"""A layout is short, and gives back exactly the layers it was made from; a damaged one is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.adapter.geometry import Conv2d, Embedding, Linear
from rankfold.adapter.layout import describe_layer, layers_in, layout_of
from rankfold.errors import AdapterFileError
from rankfold.limits import MOST_LAYERS

PARTS = st.sampled_from(("layer", "attention", "query", "0", "1", "2", "7", "007", "0-2"))
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
SIDES = st.integers(1, 99)


def convolution(groups, size, kernel, dilation, padding):
    return Conv2d(groups, groups * size, kernel, (1, 1), (0, 0), dilation, groups, padding, ())


# Fields and not the layers themselves: the shape checker draws random numbers, which a strategy must not.
LINEAR = st.tuples(st.just(Linear), SIDES, SIDES, st.booleans())
EMBEDDINGS = st.tuples(st.just(Embedding), SIDES, SIDES)
KERNELS = st.tuples(st.integers(1, 9), st.integers(1, 9))
PADDINGS = st.sampled_from(("zeros", "reflect", "replicate", "circular"))
CONVOLUTIONS = st.tuples(
    st.just(convolution), st.integers(1, 3), SIDES, KERNELS, st.sampled_from(((1, 1), (2, 3))), PADDINGS
)


@given(st.dictionaries(NAMES, LINEAR | EMBEDDINGS | CONVOLUTIONS, max_size=20))
def test_layers_of_a_layout_are_those_it_was_made_from(fields):
    layers = {name: make(*sizes) for name, (make, *sizes) in fields.items()}
    assert layers_in(layout_of(layers)) == layers


def test_blocks_are_drawn_together():
    names = [f"bert.layer.{block}.{leaf}" for block in (0, 1, 2, 5) for leaf in ("query", "value")]
    layout = layout_of({name: Linear(8, 8) for name in names} | {"head": Linear(8, 3)})
    assert layout == {
        "linear 8 -> 8": ["bert.layer.{0-2,5}.query", "bert.layer.{0-2,5}.value"],
        "linear 8 -> 3": ["head"],
    }


def test_layout_of_a_large_model_is_a_few_hundred_bytes():
    leaves = {"q_proj": 4096, "k_proj": 1024, "v_proj": 1024, "o_proj": 4096, "up_proj": 14336}
    layers = {
        f"model.layers.{block}.self_attn.{leaf}": Linear(4096, size)
        for block in range(80)
        for leaf, size in leaves.items()
    }
    assert len(str(layout_of(layers))) < 400


@pytest.mark.parametrize(
    "layout",
    [
        {"linear 8": ["a"]},
        {"linear 0 -> 8": ["a"]},
        {"linear 8 -> 8 kernel 3x3": ["a"]},
        {"conv2d 8 -> 8": ["a"]},
        {"conv2d 3 -> 8 kernel 3x3 groups 2": ["a"]},
        {"linear 99999999999 -> 8": ["a"]},
        {"linear 8 -> 8": ["a.{1-x}"]},
        {"linear 8 -> 8": ["a.{}"]},
        {"linear 8 -> 8": ["a", "a"]},
        {"linear 8 -> 8": ["a.{0-3}", "a.2"]},
        {"linear 8 -> 8": [f"a.{{0-{MOST_LAYERS}}}"]},
        {"linear 8 -> 8": ["a.{0-999999999}.{0-999999999}"]},
    ],
    ids=str,
)
def test_damaged_layout_is_refused(layout):
    with pytest.raises(AdapterFileError, match=r"restore its adapter_config\.json"):
        layers_in(layout)


def test_sizes_read_as_a_sentence():
    assert describe_layer(Linear(384, 1536)) == "linear 384 -> 1536"
    assert describe_layer(Linear(384, 1536, transposed=True)) == "conv1d 384 -> 1536"
    assert describe_layer(Embedding(30522, 384)) == "embedding 30522 -> 384"
