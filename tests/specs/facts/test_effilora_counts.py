"""EffiLoRA, table 1, LLaMA3-8B with r = 16 on five projections: exact counts, and the printed ones.

The paper's shares assume that down and up factors are of one size (half of LoRA each), which grouped queries
and the feed-forward layers are not. So the printed share is that of the half, and the exact count is another.
"""

import pytest

import rankfold
from rankfold.runs.workload import trace_step
from rankfold.tasks.kinds import kind_base
from tests.reference import effilora
from tests.specs.facts.models import HUB_IDS, count, percent, total

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
HALF = 28_311_552 // 2
TYPES_OF_INPUT = 16 * (4096 + 14336)
# (inputs, outputs) of the five projections, in each of 32 blocks.
LAYERS = 32 * [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 14336), (14336, 4096)]


def trainable_count(method, **options):
    return count("llama3-8b", method, targets=TARGETS, **options).trainable


@pytest.mark.parametrize(("r", "expected"), [(16, 28_311_552), (32, 56_623_104), (64, 113_246_208)])
def test_lora_counts_are_the_papers(r, expected):
    assert trainable_count("lora", r=r) == expected


def test_lora_share_is_the_papers():
    assert percent(28_311_552, total("llama3-8b")) == 0.35


def test_lora_fa_trains_12582912_and_the_paper_prints_the_half():
    assert trainable_count("lora_fa", r=16) == 12_582_912
    assert round(100 * 12_582_912 / total("llama3-8b"), 3) == 0.157
    assert round(100 * HALF / total("llama3-8b"), 3) == 0.176, "printed as 0.17"


def test_share_lora_trains_13074432():
    assert trainable_count("share_lora", r=16) == 13_074_432
    assert round(100 * 13_074_432 / total("llama3-8b"), 3) == 0.163


def test_effilora_with_one_head_trains_12877824_and_the_paper_prints_the_half_and_the_shared():
    assert trainable_count("effilora", r=16, heads=1) == 12_877_824
    assert round(100 * 12_877_824 / total("llama3-8b"), 3) == 0.160
    assert HALF + TYPES_OF_INPUT == 14_450_688
    assert percent(14_450_688, total("llama3-8b")) == 0.18


def test_effilora_shares_one_down_factor_for_each_input_width():
    by_factor = count("llama3-8b", "effilora", targets=TARGETS, r=16, heads=1).by_factor
    assert by_factor["down"].stored == TYPES_OF_INPUT
    assert by_factor["up"].stored == 12_582_912


def test_effilora_stores_50636800_with_four_heads():
    """The paper's 0.70 % before reduction: 0.63 % with the layers' real shapes."""
    layer_count = count("llama3-8b", "effilora", targets=TARGETS, r=16)
    factors = layer_count.by_factor["down"].stored + layer_count.by_factor["up"].stored
    assert (factors, layer_count.by_factor["router"].stored) == (50_626_560, 10_240)
    assert layer_count.stored == layer_count.trainable == 50_636_800 == effilora.parameters(LAYERS, 16, 4)
    assert round(100 * factors / total("llama3-8b"), 3) == 0.630


def test_effiloras_printed_count_is_three_of_four_halves_and_the_shared():
    """As if down and up factors were of one size: 24 of 32 blocks at a time, one V for each input width."""
    assert 3 * HALF + TYPES_OF_INPUT == 42_762_240, "printed as 42.8 M"
    assert percent(42_762_240, total("llama3-8b")) == 0.53
    assert 3 * HALF + TYPES_OF_INPUT + 10_240 == 42_772_480, "with its routers"
    assert round(100 * 4 * HALF / total("llama3-8b"), 3) == 0.705, "printed as 0.70 before reduction"


def test_hydra_lora_trains_66060288_and_a_router_of_3932160():
    by_factor = count("llama3-8b", "hydra_lora", targets=TARGETS, r=16).by_factor
    factors = by_factor["down"].stored + by_factor["up"].stored
    assert (factors, by_factor["router"].stored) == (66_060_288, 3_932_160)
    assert factors + by_factor["router"].stored == 69_992_448
    shares = [round(100 * part / total("llama3-8b"), 3) for part in (factors, 69_992_448)]
    assert shares == [0.823, 0.872]


def test_hydra_loras_printed_share_is_five_halves_and_the_router():
    assert 5 * HALF + 3_932_160 == 74_711_040
    assert percent(74_711_040, total("llama3-8b")) == 0.93


def test_operations_of_a_step_hardly_grow_with_the_rank():
    """The paper's table 2 has 15.11 times the operations for r = 64."""
    base = kind_base(HUB_IDS["llama3-8b"], kind=None, num_labels=1)
    small, large = (
        trace_step(base.with_adapter(rankfold.config("lora", r=r, target_modules=TARGETS))[1], 1, 16).flops
        for r in (16, 64)
    )
    assert round(large / small, 3) == 1.017
