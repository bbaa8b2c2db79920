"""Saved adapters without a model: tensors under the names that an encoder's layers have."""

import json

import torch

from rankfold.store.adapter import SavedAdapter
from rankfold.store.tensors import TensorEntry, bytes_of
from rankfold.store.weights import Layout

LAYER = "base_model.model.encoder.layer.{}.attention.self.{}.rankfold_core.weight"


def make_adapter(seed=0, *, size=6, layers=2, preset="tlora", base="tiny", head=None, **config):
    """Return an adapter whose values follow from the seed; `head` is that of a classification head."""
    draw = torch.Generator().manual_seed(seed)
    names = [LAYER.format(index, kind) for index in range(layers) for kind in ("query", "value")]
    tensors = {name: torch.randn(size, generator=draw) for name in names}
    if head is not None:
        draw.manual_seed(head)
        tensors["base_model.model.classifier.weight"] = torch.randn(2, 100, generator=draw)
        tensors["base_model.model.classifier.bias"] = torch.randn(2, generator=draw)
        config["modules_to_save"] = ["classifier", "score"]
    values = {
        "peft_type": "RANKFOLD",
        "preset": preset,
        "base_model_name_or_path": base,
        "seed": seed % 3,
        **config,
    }
    return adapter_of(tensors, **values)


def adapter_of(tensors, *, peft_type="LORA", **config):
    """Return an adapter of these tensors."""
    text = json.dumps({"peft_type": peft_type, **config}, indent=2, sort_keys=True).encode()
    entries = tuple(TensorEntry.of(name, tensor) for name, tensor in tensors.items())
    return SavedAdapter(text, Layout(entries, {"format": "pt"}), tensors)


def same(one, other):
    """Whether two adapters are the same in every byte."""
    return (one.config, one.layout, one.weights_file()) == (other.config, other.layout, other.weights_file())


def payload(saved):
    """Return the values of an adapter, one after another."""
    return b"".join(map(bytes_of, saved.tensors.values()))
