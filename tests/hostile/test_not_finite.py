"""Weights with NaN or infinities are refused at every door by the tensor's name, before a model loads."""

import dataclasses

import pytest
import torch

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.export.base import open_rankfold_adapter
from rankfold.runs.trained import open_trained
from rankfold.store.size import explain
from tests.support.stored import adapter_of, make_adapter

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_value_that_is_not_finite_is_refused_at_the_door(value, dtype, tmp_path):
    tensor = torch.tensor([1.0, value, 2.0, value], dtype=dtype)
    if tensor.float().isfinite().all():
        return  # a type without infinities
    adapter = adapter_of({"fine": torch.ones(3), "weight": tensor, "index": torch.arange(3)})
    adapter.write(tmp_path / "folder")
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        for use in (
            lambda: rankfold.pack_adapter(tmp_path / "folder", tmp_path / "packed"),
            lambda: store.put("a", tmp_path / "folder"),
            lambda: open_trained(tmp_path / "folder"),
            lambda: open_rankfold_adapter(tmp_path / "folder"),
        ):
            with pytest.raises(
                AdapterFileError, match=r"'weight' has 2 values that are not finite.*; restore"
            ):
                use()
    assert not (tmp_path / "packed").exists()
    assert explain(tmp_path / "folder").learned_bytes, "its size can be asked for"


def test_large_numbers_are_finite(tmp_path):
    large = torch.tensor([1e300, -1e300], dtype=torch.float64)
    adapter = make_adapter()
    name = next(iter(adapter.tensors))
    rankfold.pack_adapter(adapter_of({name: large}), tmp_path / "packed")
    assert torch.equal(rankfold.open_adapter(tmp_path / "packed").tensors[name], large)
    assert dataclasses.replace(adapter).check_finite() is None
