"""One adapter's arithmetic: its change is its delta weight, in every type of layer and composition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.adapter.build import Builder, Site
from rankfold.adapter.geometry import Conv2d, Embedding, Linear
from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import DenseSpec, DiagonalSpec, RelaySpec, SeededSpec
from tests.reference import base_layers, relay
from tests.reference.products import product
from tests.support.tolerance import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::rankfold.RankfoldWarning")

SIDES = st.sampled_from([DenseSpec(), SeededSpec(), RelaySpec(1), RelaySpec(2, "row_major")])
CORES = st.sampled_from([None, DenseSpec(), DiagonalSpec("ones")])
SIZE = st.integers(1, 9)


def make_adapter(spec, geometry, path="layer"):
    return Builder({path: Site(geometry, spec)}, name="default").build(path).adapter.double()


def entries_of(factor):
    """Return a factor's matrix by the reference, from its numbers."""
    if hasattr(factor, "left"):
        position = {"strided": relay.strided, "row_major": relay.row_major}[factor.order]
        return relay.relayed(factor.left, factor.right, factor.rows, factor.cols, position)
    if factor.is_frozen:
        return factor().double()
    weight = factor.weight
    return torch.diag(weight) if weight.ndim == 1 else weight


@given(inputs=SIZE, outputs=SIZE, rank=st.integers(1, 3), down=SIDES, core=CORES, up=SIDES, data=st.data())
def test_adapter_adds_its_factors_product_in_any_composition(inputs, outputs, rank, down, core, up, data):
    if isinstance(down, SeededSpec) and isinstance(up, SeededSpec) and core is None:
        core = DenseSpec()
    rank = min(rank, inputs, outputs)
    rank_up = data.draw(st.integers(1, min(inputs, outputs))) if isinstance(core, DenseSpec) else rank
    scaling = data.draw(st.sampled_from(["alpha_over_r", "none", "learned"]))
    spec = AdapterSpec(rank=rank, rank_up=rank_up, alpha=3.0, down=down, core=core, up=up, scaling=scaling)
    adapter = make_adapter(spec, Linear(inputs, outputs))
    if adapter.scale is not None:
        adapter.scale.value.data.fill_(1.7)

    matrix = entries_of(adapter.down)
    if core is not None:
        matrix = product(entries_of(adapter.core), matrix)
    expected = {"alpha_over_r": 3.0 / rank, "none": 1.0, "learned": 1.7}[scaling] * product(
        entries_of(adapter.up), matrix
    )
    assert_close(adapter.delta_weight().detach(), expected.detach())
    x = torch.randn(2, 3, inputs, dtype=torch.float64)
    zero = torch.zeros(outputs, inputs, dtype=torch.float64)
    wanted = base_layers.linear(x, zero, zero[:, 0], expected)
    assert_close(adapter(x).detach(), wanted.detach())


@given(
    channels=st.integers(1, 3),
    outputs=st.integers(2, 3),
    groups=st.integers(1, 3),
    kernel=st.tuples(SIZE, SIZE),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_convolution_adds_its_delta_weight(channels, outputs, groups, kernel, stride, padding, dilation):
    kernel = (min(kernel[0], 3), min(kernel[1], 3))
    padded = (padding[1], padding[1], padding[0], padding[0])
    geometry = Conv2d(
        channels * groups, outputs * groups, kernel, stride, padding, dilation, groups, "zeros", padded
    )
    spec = AdapterSpec(rank=1, rank_up=2, alpha=3.0, core=DenseSpec(), up=DenseSpec())
    adapter = make_adapter(spec, geometry)
    x = torch.randn(2, channels * groups, 6, 7, dtype=torch.float64)
    weight = adapter.delta_weight()
    assert weight.shape == (outputs * groups, channels, *kernel)
    expected = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)
    assert_close(adapter(x).detach(), expected.detach())


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(1, 2), "same"])
def test_convolution_pads_as_its_base_layer(mode, padding):
    base = torch.nn.Conv2d(2, 3, (3, 5), padding=padding, padding_mode=mode, bias=False).double()
    widths = tuple(base._reversed_padding_repeated_twice)
    geometry = Conv2d(2, 3, (3, 5), (1, 1), padding, (1, 1), 1, mode, widths)
    adapter = make_adapter(AdapterSpec(rank=2, up=DenseSpec()), geometry)
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        base.weight.copy_(adapter.delta_weight())
        assert_close(adapter(x), base(x))


@given(tokens=SIZE, features=SIZE, core=CORES)
def test_embedding_adds_its_delta_weights_rows(tokens, features, core):
    spec = AdapterSpec(rank=1, core=core, up=DenseSpec(), alpha=3.0)
    adapter = make_adapter(spec, Embedding(tokens, features))
    x = torch.arange(tokens).repeat(2, 1)
    weight = adapter.delta_weight().detach()
    assert weight.shape == (tokens, features)
    assert_close(adapter(x).detach(), weight.expand(2, tokens, features))


def test_embeddings_dropout_drops_whole_tokens():
    torch.manual_seed(0)
    adapter = make_adapter(AdapterSpec(rank=2, up=DenseSpec(), dropout=0.5), Embedding(7, 5))
    x = torch.zeros(2000, dtype=torch.int64)
    adapter.train()
    with torch.no_grad():
        adapter.down.weight.fill_(1.0)
        rows = adapter(x)
        kept = 2 * adapter.eval()(x[:1])
    is_zero = (rows == 0).all(dim=1)
    assert is_zero.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert_close(rows[~is_zero], kept.expand(int((~is_zero).sum()), -1))


def test_input_dropout_drops_inputs_and_keeps_the_mean():
    torch.manual_seed(0)
    adapter = make_adapter(AdapterSpec(rank=2, up=DenseSpec(), dropout=0.25), Linear(5, 4)).train()
    x = torch.ones(20000, 5, dtype=torch.float64)
    with torch.no_grad():
        assert_close(adapter(x).mean(dim=0), adapter.eval()(x[:1])[0], dtype=torch.bfloat16)
        dropped = adapter.train()(x)
    assert len(dropped.unique(dim=0)) == 2**5, "each input is dropped by itself"


def test_strength_multiplies_output_and_weight():
    adapter = make_adapter(AdapterSpec(rank=2, up=DenseSpec()), Linear(5, 4))
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        output, weight = adapter(x), adapter.delta_weight()
        adapter.strength = -0.5
        assert_close(adapter(x), -0.5 * output)
        assert_close(adapter.delta_weight(), -0.5 * weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_delta_weight_of_a_low_precision_adapter_is_multiplied_in_float32(dtype):
    adapter = make_adapter(AdapterSpec(rank=4, up=DenseSpec()), Linear(40, 30)).to(dtype)
    exact = 4.0 * product(adapter.up.weight.detach().double(), adapter.down.weight.detach().double())
    weight = adapter.delta_weight().detach()
    assert weight.dtype == torch.float32
    assert_close(weight, exact)


def test_frozen_factors_follow_the_dtype_of_the_trained_ones():
    adapter = make_adapter(AdapterSpec(rank=2, down=SeededSpec(), up=DenseSpec()), Linear(5, 4)).bfloat16()
    assert adapter(torch.ones(2, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert adapter.down().dtype == torch.float32


def test_conv1d_writes_its_delta_weight_transposed():
    spec = AdapterSpec(rank=2, up=DenseSpec())
    plain, transposed = (make_adapter(spec, Linear(5, 4, transposed=each)) for each in (False, True))
    assert_close(transposed.delta_weight().detach(), plain.delta_weight().T.detach())
