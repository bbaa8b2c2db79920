"""Bytes on disk are numbers learned: at most 1 % and 200 bytes a tensor more, on a real model's layers."""

from math import prod

import peft
import pytest
from safetensors import safe_open

import rankfold
from rankfold.presets import discover
from tests.support.minilm_layers import TARGET_SETS, minilm, targets_for

__all__ = ["minilm"]

BYTES_A_NUMBER, BYTES_A_TENSOR = 4, 200


@TARGET_SETS
@pytest.mark.parametrize("method", discover())
def test_file_is_as_large_as_what_was_learned(minilm, method, targets, tmp_path):
    model = peft.get_peft_model(minilm, rankfold.config(method, target_modules=targets_for(method, targets)))
    try:
        model.save_pretrained(tmp_path)
        count = rankfold.count_parameters(model)
    finally:
        model.unload()
    file = tmp_path / "adapter_model.safetensors"
    with safe_open(file, "pt") as stored:
        sizes = [stored.get_slice(key).get_shape() for key in stored.keys()]  # noqa: SIM118 (not a dictionary)
    assert sum(map(prod, sizes)) == count.stored == count.trainable
    assert file.stat().st_size <= 1.01 * BYTES_A_NUMBER * count.stored + BYTES_A_TENSOR * len(sizes)
