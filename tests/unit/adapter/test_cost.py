"""The cost of a step: its arithmetic is torch's own count, and it grows with the adapter."""

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.predicted import compared
from rankfold.adapter.build import Builder
from rankfold.adapter.cost import adapter_work, base_work
from rankfold.adapter.geometry import Embedding, Linear
from rankfold.adapter.router import RouterSpec
from rankfold.adapter.site import MlpPosition, Site
from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import DenseSpec, LowRankSpec, RelaySpec, SeededSpec
from rankfold.peft_plugin.targets import plan_adapters
from rankfold.presets import discover
from tests.support.toys import LINEAR_TARGETS, WIDTH, Block, preset_configs, toy, toy_sizes_allowed

ROWS, POSITIONS = 3, 7
TOKENS = ROWS * POSITIONS
HEADS = RouterSpec()
CONFIGS = preset_configs(target_modules=list(LINEAR_TARGETS))


class Stack(nn.Module):
    """Two blocks, whose input may have a gradient."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def count_flops(model) -> int:
    """Return the operations of a training step as torch counts them."""
    x = torch.randn(ROWS, POSITIONS, WIDTH, requires_grad=True)
    # The counter does not know the product that is added in place.
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(x).sum().backward()
    return counter.get_total_flops()


def work_of(spec, *, geometry=None, layers=2, tokens=100):
    with toy_sizes_allowed():
        return adapter_work(
            Builder(
                {f"block.{i}.query": Site(geometry or Linear(40, 30), spec) for i in range(layers)}, name="x"
            ),
            tokens,
        )


@pytest.mark.parametrize("name", discover())
def test_operations_are_those_that_torch_counts(name):
    config = CONFIGS[name]
    base = Stack().requires_grad_(requires_grad=False)
    with toy_sizes_allowed():
        predicted = adapter_work(plan_adapters(base, config), TOKENS).flops
        before = count_flops(base)
        after = count_flops(peft.get_peft_model(base, config).train())
    assert predicted == after - before


def test_operations_of_a_frozen_base_are_those_that_torch_counts():
    layers = [Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH), Linear(WIDTH, 9), Linear(9, WIDTH)] * 2
    base = Stack().requires_grad_(requires_grad=False)
    assert base_work(layers, TOKENS).flops == count_flops(base)


def test_traffic_of_a_frozen_layer_counts_its_weight_twice_and_its_tensors_for_each_token():
    # Input and output forwards and backwards, and each output seven times more in its block.
    a_token, weight = 2 * (IN + OUT) + 7 * OUT, 2 * IN * OUT
    assert base_work([Linear(IN, OUT)], TOKENS).bytes == 4 * (TOKENS * a_token + weight)
    assert base_work([Embedding(9, OUT)], TOKENS).bytes == 4 * TOKENS * 2 * OUT


@pytest.mark.parametrize("name", discover())
def test_numbers_and_tensors_are_those_of_the_built_adapter(name):
    config = preset_configs()[name]
    with toy_sizes_allowed():
        builder = plan_adapters(toy(), config)
        built = peft.get_peft_model(toy(), config)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    assert builder.parameter_count() == sum(parameter.numel() for parameter in trained)
    assert sorted(size for _, size in builder.tensor_sizes()) == sorted(p.numel() for p in trained)


@settings(max_examples=25)
@given(rank=st.integers(1, 20), more=st.integers(1, 8), tokens=st.integers(1, 500))
def test_work_grows_with_rank_layers_and_tokens(rank, more, tokens):
    smaller = work_of(AdapterSpec(rank=rank), tokens=tokens)
    for larger in (
        work_of(AdapterSpec(rank=rank + more), tokens=tokens),
        work_of(AdapterSpec(rank=rank), layers=2 + more, tokens=tokens),
        work_of(AdapterSpec(rank=rank), tokens=tokens + more),
    ):
        assert larger.flops > smaller.flops
        assert larger.bytes > smaller.bytes
        assert larger.time > smaller.time


@settings(max_examples=25)
@given(heads=st.integers(2, 8), more=st.integers(1, 8), own=st.booleans())
def test_work_grows_with_heads(heads, more, own):
    few, many = (
        work_of(AdapterSpec(rank=2, heads=number, down_per_head=own, router=HEADS))
        for number in (heads, heads + more)
    )
    assert many.flops > few.flops
    assert many.time > few.time


@pytest.mark.parametrize(
    ("cheaper", "dearer"),
    [
        (AdapterSpec(rank=4, down=SeededSpec()), AdapterSpec(rank=4)),
        (AdapterSpec(rank=4, share_down="module_type"), AdapterSpec(rank=4)),
        (AdapterSpec(rank=4), AdapterSpec(rank=4, dropout=0.1)),
        (AdapterSpec(rank=4), AdapterSpec(rank=4, down=RelaySpec(k=2))),
        (
            AdapterSpec(rank=4, core=DenseSpec("zeros"), up=DenseSpec()),
            AdapterSpec(rank=4, core=LowRankSpec(2), up=DenseSpec()),
        ),
        (
            AdapterSpec(rank=4, heads=2, router=RouterSpec(reads="code")),
            AdapterSpec(rank=4, heads=2, router=RouterSpec(reads="input")),
        ),
    ],
    ids=["frozen", "shared", "dropout", "relayed", "inner pair", "router on the input"],
)
def test_what_does_more_takes_more_time(cheaper, dearer):
    assert work_of(cheaper).time < work_of(dearer).time


IN, OUT = 40, 30
PLAIN = 4 * (IN + OUT)  # read, changed, and both again backwards
CHANGE = 2 * (IN + OUT)  # of a change that is a tensor of its own before it is added
EXPERTS = RouterSpec(scope="experts", top_k=2)


@pytest.mark.parametrize(
    ("spec", "geometry", "values"),
    [
        (AdapterSpec(rank=4), Linear(IN, OUT), PLAIN),
        (AdapterSpec(rank=4, down=SeededSpec()), Linear(IN, OUT), PLAIN - IN),
        (AdapterSpec(rank=4), Linear(IN, OUT, transposed=True), PLAIN + CHANGE),
        (AdapterSpec(rank=4), Embedding(IN, OUT), 4 * OUT + 2 * OUT),
        (AdapterSpec(rank=4, dropout=0.1), Linear(IN, OUT), PLAIN + CHANGE + 5 * IN),
        (
            AdapterSpec(rank=4, dropout=0.1, dropout_position="output"),
            Linear(IN, OUT),
            PLAIN + CHANGE + 5 * OUT,
        ),
        (
            AdapterSpec(rank=4, heads=2, router=RouterSpec(reads="code")),
            Linear(IN, OUT),
            PLAIN + 6 * 2 * 4,
        ),
        (AdapterSpec(rank=4, heads=2, router=HEADS), Linear(IN, OUT), PLAIN + 6 * 2 * 4 + 6 * IN),
        (
            AdapterSpec(rank=4, heads=2, router=RouterSpec(reads="code"), dropout=0.1),
            Linear(IN, OUT),
            PLAIN + 6 * 2 * 4 + CHANGE + 5 * IN + 6 * IN,
        ),
    ],
    ids=["plain", "frozen", "transposed", "embedding", "in", "out", "code", "input", "code without dropout"],
)
def test_traffic_of_a_token_counts_the_tensors_that_are_read_and_written(spec, geometry, values):
    few, many = (work_of(spec, geometry=geometry, layers=1, tokens=tokens).bytes for tokens in (10, 110))
    assert (many - few) / 100 == pytest.approx(4 * values)


@pytest.mark.parametrize(
    ("role", "values"),
    [
        ("entry", 4 * (IN + 2 * OUT) + 2 * (IN + 2 * OUT) + 6 * 3 * 4 + 7 * OUT),
        ("exit", 4 * (2 * IN + OUT) + 2 * (2 * IN + OUT) + 6 * 3 * 4 * 2 + 4 * IN),
    ],
)
def test_traffic_of_experts_is_that_of_each_chosen_one(role, values):
    spec = AdapterSpec(rank=4, heads=3, heads_in="mlp", router=EXPERTS)
    site = Site(Linear(IN, OUT), spec, MlpPosition("mlp", role, 50))
    with toy_sizes_allowed():
        builder = Builder({"mlp.layer": site}, name="x")
    few, many = (adapter_work(builder, tokens).bytes for tokens in (10, 110))
    router = 6 * 50  # which reads the input of the MLP
    assert (many - few) / 100 == pytest.approx(4 * (values + router))


def test_optimiser_moves_each_parameter_eight_times():
    work = work_of(AdapterSpec(rank=4), layers=1, tokens=0)
    assert work.bytes == 4 * 8 * 4 * (IN + OUT)


def test_lookup_of_an_embedding_is_no_product():
    spec = AdapterSpec(rank=4)
    assert work_of(spec, geometry=Embedding(1000, 30)).flops == work_of(spec, geometry=Embedding(9, 30)).flops


def test_targets_cover_the_stack():
    assert set(plan_adapters(Stack(), next(iter(CONFIGS.values()))).sites) == {
        f"{block}.{name}" for block in (0, 1) for name in LINEAR_TARGETS
    }


@pytest.mark.parametrize("figure", compared(), ids=lambda each: f"{each.setting}, {each.variant}")
def test_predicted_time_is_near_the_recorded_one(figure):
    assert figure.predicted == pytest.approx(figure.measured, rel=0.08)
