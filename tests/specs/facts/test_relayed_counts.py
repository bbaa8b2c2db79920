"""Relayed LoRA, tables 1-3 and Figure 4: which counts come out, and with which reading of the targets."""

import pytest

from tests.reference import relay
from tests.specs.facts.models import count, percent

ROBERTA = ["query", "value"]
DEBERTA_V3 = ["query_proj", "key_proj", "value_proj"]


def counts_of_both(name, targets):
    lora = count(name, "lora", targets=targets, r=8)
    relayed = count(name, "relayed_lora", targets=targets, r=8, k=8)
    return lora.trainable, relayed.trainable


def test_roberta_base_trains_294912_with_lora_and_60672_relayed():
    lora, relayed = counts_of_both("roberta-base", ROBERTA)
    assert (lora, relayed) == (294_912, 60_672)
    assert percent(lora - relayed, lora) == 79.43, "the paper prints 79.5"


def test_roberta_large_trains_786432_with_lora_and_139776_relayed():
    lora, relayed = counts_of_both("roberta-large", ROBERTA)
    assert (lora, relayed) == (786_432, 139_776)
    assert percent(lora - relayed, lora) == 82.23


def test_deberta_trains_442368_with_lora_and_91008_relayed_with_query_key_and_value():
    lora, relayed = counts_of_both("deberta-v3-base", DEBERTA_V3)
    assert (lora, relayed) == (442_368, 91_008)
    assert percent(lora - relayed, lora) == 79.43, "the paper prints 79.4"


@pytest.mark.parametrize(
    ("name", "targets", "counts"),
    [
        ("deberta-v3-base", ["query_proj", "value_proj"], (294_912, 60_672)),
        ("deberta-base", ["in_proj"], (294_912, 41_280)),
        ("deberta-base", ["in_proj", "pos_q_proj"], (442_368, 71_616)),
    ],
)
def test_deberta_counts_differ_with_every_other_reading_of_the_targets(name, targets, counts):
    assert counts_of_both(name, targets) == counts


def test_lora_of_rank_64_trains_6291456_on_roberta_large_and_not_on_base():
    assert count("roberta-base", "lora", targets=ROBERTA, r=64).trainable == 2_359_296
    assert count("roberta-large", "lora", targets=ROBERTA, r=64).trainable == 6_291_456


@pytest.mark.parametrize(("k", "share"), [(4, 3.12), (8, 6.25), (16, 12.5), (32, 25.0)])
def test_relayed_share_of_rank_64_on_roberta_large_is_the_papers(k, share):
    trainable_count = count("roberta-large", "relayed_lora", targets=ROBERTA, r=64, k=k).trainable
    assert trainable_count == k * 1_572_864 // 32
    assert percent(trainable_count, 6_291_456) == share


def test_relayed_share_of_rank_64_on_roberta_base_is_larger():
    trainable_count = count("roberta-base", "relayed_lora", targets=ROBERTA, r=64, k=32).trainable
    assert (trainable_count, percent(trainable_count, 2_359_296)) == (681_984, 28.91)


def test_square_is_the_smallest_split_only_up_to_rounding():
    entries = 8 * 768
    assert entries <= 75 * 82
    assert 2 * relay.side(entries) - 1 == 75 + 82
