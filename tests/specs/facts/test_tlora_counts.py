"""TLoRA, table 2, and TLoRA+, Figure 4: counts on the four backbones that both papers use."""

import pytest

from tests.specs.facts.models import ENCODER_LINEARS, count

SIDES = {8: (3_120, 786_432), 16: (12_336, 1_572_864), 32: (49_200, 3_145_728)}
RANKS = (8, 16, 32, 64)

# All linear layers of the blocks: LoRA, the core alone, all three factors; for each rank.
FIGURE_4 = {
    "roberta-base": [
        (1_327_104, 4_608, 1_331_712),
        (2_654_208, 18_432, 2_672_640),
        (5_308_416, 73_728, 5_382_144),
        (10_616_832, 294_912, 10_911_744),
    ],
    "deberta-base": [
        (1_474_560, 4_608, 1_479_168),
        (2_949_120, 18_432, 2_967_552),
        (5_898_240, 73_728, 5_971_968),
        (11_796_480, 294_912, 12_091_392),
    ],
    "roberta-large-mnli": [
        (3_538_944, 9_216, 3_548_160),
        (7_077_888, 36_864, 7_114_752),
        (14_155_776, 147_456, 14_303_232),
        (28_311_552, 589_824, 28_901_376),
    ],
}
FIGURE_4["opt-125m"] = FIGURE_4["roberta-base"]
# All ranks on one model; on the others, whose counts are other multiples of the same powers of r, two.
CELLS = [
    (name, r, *counts)
    for name, rows in FIGURE_4.items()
    for r, counts in zip(RANKS, rows, strict=True)
    if name == "roberta-base" or r in (8, 64)
]


@pytest.mark.parametrize("r", SIDES)
def test_tlora_trains_the_papers_numbers_on_roberta_large(r):
    ours, lora = SIDES[r]
    targets = ["query", "value"]
    counted = count("roberta-large-mnli", "tlora", targets=targets, r=r)
    assert counted.trainable == ours
    assert counted.total - counted.stored == 355_362_819
    assert count("roberta-large-mnli", "lora", targets=targets, r=r).trainable == lora


@pytest.mark.parametrize(("name", "r", "lora", "core", "three"), CELLS)
def test_tlora_plus_trains_the_numbers_of_figure_4(name, r, lora, core, three):
    targets = ENCODER_LINEARS[name]
    assert count(name, "lora", targets=targets, r=r).trainable == lora
    assert count(name, "tlora_plus", targets=targets, r=r, train="core").trainable == core
    assert count(name, "tlora", targets=targets, r=r).by_factor["core"].trainable == core
    assert count(name, "tlora_plus", targets=targets, r=r).trainable == three
    assert 1.003 <= round(three / lora, 3) <= 1.028, "only slightly more than LoRA"
