"""EffiLoRA, table 1, LLaMA3-8B with r = 16 on five projections: exact counts, and what is printed.

The paper's shares assume that down and up factors are of one size (half of LoRA each), which grouped queries
and the feed-forward layers are not. So the printed share is that of the half, and the exact count is another.
"""

import pytest

from tests.specs.facts.models import count, percent, total

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
HALF = 28_311_552 // 2
TYPES_OF_INPUT = 16 * (4096 + 14336)


def trained(method, **options):
    return count("llama3-8b", method, targets=TARGETS, **options).trainable


@pytest.mark.parametrize(("r", "expected"), [(16, 28_311_552), (32, 56_623_104), (64, 113_246_208)])
def test_lora_counts_are_the_papers(r, expected):
    assert trained("lora", r=r) == expected


def test_lora_share_is_the_papers():
    assert percent(28_311_552, total("llama3-8b")) == 0.35


def test_lora_fa_trains_12582912_and_the_paper_prints_the_half():
    assert trained("lora_fa", r=16) == 12_582_912
    assert round(100 * 12_582_912 / total("llama3-8b"), 3) == 0.157
    assert round(100 * HALF / total("llama3-8b"), 3) == 0.176, "printed as 0.17"


def test_share_lora_trains_13074432():
    assert trained("share_lora", r=16) == 13_074_432
    assert round(100 * 13_074_432 / total("llama3-8b"), 3) == 0.163


def test_effilora_with_one_head_trains_12877824_and_the_paper_prints_the_half_and_the_shared():
    assert trained("effilora", r=16, heads=1) == 12_877_824
    assert round(100 * 12_877_824 / total("llama3-8b"), 3) == 0.160
    assert HALF + TYPES_OF_INPUT == 14_450_688
    assert percent(14_450_688, total("llama3-8b")) == 0.18


def test_effilora_shares_one_down_factor_for_each_input_width():
    by_factor = count("llama3-8b", "effilora", targets=TARGETS, r=16, heads=1).by_factor
    assert by_factor["down"].stored == TYPES_OF_INPUT
    assert by_factor["up"].stored == 12_582_912
