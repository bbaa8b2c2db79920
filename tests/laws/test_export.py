"""Folding is exact or refused: an exported adapter in plain PEFT has the same output."""

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import nn

import rankfold
from rankfold.errors import NotExactError
from rankfold.export.base import open_rankfold_adapter
from rankfold.export.fold import exact_rank, folding_obstacle
from rankfold.export.formats.plain_lora import write_plain_lora
from rankfold.export.layers import needs_base_weights
from tests.laws.law import law
from tests.support.tolerance import relative_rms
from tests.support.toys import adapted, ids, toy

BOUND = {torch.float32: 1e-6, torch.float64: 1e-12}


def _folded_adapter_says_the_same_in_plain_peft(config: rankfold.RankfoldConfig) -> None:
    """Its logits are those of the adapter, in single and in double precision; a router is refused."""
    for dtype, bound in BOUND.items():
        model = adapted(copy.deepcopy(config), dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            if folding_obstacle(config.spec_for("query")) is not None:
                assert refuses(folder)
                return
            loaded = plain(folder, dtype)
        assert {module.__class__.__module__.partition(".")[0] for module in loaded.modules()} <= PLAIN
        # Some drawn compositions turn the rounding of float32 itself into more than the bound.
        rounding = relative_rms(model(ids()), copy.deepcopy(model).double()(ids()))
        assert relative_rms(loaded(ids()), model(ids())) <= max(bound, 3 * rounding)
        assert relative_rms(toy(dtype=dtype)(ids()), model(ids())) > 1e-3


PLAIN = {"torch", "peft", "tests", "transformers"}


def refuses(folder: str) -> bool:
    """Tell whether an adapter is refused, and nothing is written."""
    adapter, out = open_rankfold_adapter(folder), Path(folder) / "out"
    out.mkdir()
    try:
        write_plain_lora(adapter.config, adapter.saved.tensors, out)
    except NotExactError as error:
        return "router" in str(error) and not any(out.iterdir())
    return False


def plain(folder: str, dtype: torch.dtype) -> nn.Module:
    """Return the toy with the adapter of a folder as plain LoRA."""
    adapter, out = open_rankfold_adapter(folder), Path(folder) / "out"
    out.mkdir()
    base = toy(dtype=dtype)
    weights = base_weight(base) if needs_base_weights(adapter.config) else None
    folded = write_plain_lora(adapter.config, adapter.saved.tensors, out, dtype=dtype, base_weight=weights)
    for name, update in folded.updates.items():
        assert exact_rank(adapter.config.spec_for(name)) == update.rank
    assert all(".lora_" in key for key in load_file(out / "adapter_model.safetensors"))
    with warnings.catch_warnings():
        # PEFT warns of grouped convolutions, and of Conv1D and linear layers in one adapter.
        warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd|fan_in_fan_out is set")
        return peft.PeftModel.from_pretrained(base, out).eval()


def base_weight(model: nn.Module) -> Any:
    """Return a function from the name of a layer to its weight."""
    return lambda name: model.get_submodule(name).weight.detach()


test_folded_adapter_says_the_same_in_plain_peft = law(
    _folded_adapter_says_the_same_in_plain_peft, init_weights=False, examples=25
)
