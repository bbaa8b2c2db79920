"""Adapters of a store on a model are what PEFT makes of their directories."""

import peft
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import rankfold
from rankfold import AdapterFileError, AdapterStore, SpecError, StoreError
from rankfold.presets import discover
from rankfold.store.loading import load_adapter
from rankfold.store.tensors import TensorEntry, bytes_of
from rankfold.store.weights import Layout

SIZES = {"vocab_size": 30, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = torch.arange(24).reshape(2, 12)


def base(*, hidden_size=64):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(**{**SIZES, "hidden_size": hidden_size}, intermediate_size=80)
    ).eval()


def adapter(folder, config, seed):
    """Write an adapter whose values are all drawn, and return its directory."""
    model = peft.get_peft_model(base(), config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / 4)
    model.save_pretrained(folder)
    return folder


def config_of(method):
    targets = ["query", "value"]
    if discover()[method].spec().heads_in == "mlp":
        targets += ["intermediate.dense", "output.dense"]
    return rankfold.config(method, target_modules=targets, task_type="SEQ_CLS")


@pytest.fixture
def store(tmp_path):
    with AdapterStore(tmp_path / "store.db") as opened:
        yield opened


CONFIGS = {
    **{method: lambda method=method: config_of(method) for method in discover()},
    "peft:lora": lambda: peft.LoraConfig(target_modules=["query"], r=2, task_type="SEQ_CLS"),
    "peft:lokr": lambda: peft.LoKrConfig(target_modules=["query"], r=2, task_type="SEQ_CLS"),
}


@pytest.mark.parametrize("method", CONFIGS)
def test_adapter_on_its_base_model_gives_the_logits_of_its_directory(store, tmp_path, method):
    folder = adapter(tmp_path / "adapter", CONFIGS[method](), seed=1)
    store.put("a", folder)
    loaded = store.load_into(base(), ["a"])
    expected = peft.PeftModel.from_pretrained(base(), folder).eval()
    assert torch.equal(loaded(input_ids=WORDS).logits, expected(input_ids=WORDS).logits)
    assert not torch.equal(loaded(input_ids=WORDS).logits, base()(input_ids=WORDS).logits)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("form", ["folder", "folder/adapter_model.safetensors", "packed", "store.db#a"])
def test_every_form_of_an_adapter_loads_alike(store, tmp_path, form):
    folder = adapter(tmp_path / "folder", config_of("relayed_lora"), seed=1)
    rankfold.pack_adapter(folder, tmp_path / "packed")
    store.put("a", folder)
    opened = rankfold.open_adapter(tmp_path / form)
    assert (opened.sha256(), opened.source) == (rankfold.open_adapter(folder).sha256(), str(tmp_path / form))
    assert {name: len(bytes_of(tensor)) for name, tensor in opened.tensors.items()} == opened.sizes
    expected = peft.PeftModel.from_pretrained(base(), folder).eval()
    loaded = load_adapter(base(), tmp_path / form)
    assert torch.equal(loaded(input_ids=WORDS).logits, expected(input_ids=WORDS).logits)


def test_location_without_an_adapter_is_refused(store, tmp_path):
    store.put("a", adapter(tmp_path / "a", config_of("tlora"), 1))
    with pytest.raises(AdapterFileError, match=r"there is no folder or file .*absent#a'; name"):
        rankfold.open_adapter(tmp_path / "absent#a")
    with pytest.raises(SpecError, match="there is no adapter 'b'; names near it are a"):
        rankfold.open_adapter(f"{tmp_path / 'store.db'}#b")
    with pytest.raises(StoreError, match="is no store"):
        rankfold.open_adapter(f"{tmp_path / 'a' / 'adapter_config.json'}#a")


def test_adapters_come_beside_those_of_a_model(store, tmp_path):
    for seed in (1, 2, 3):
        adapter(tmp_path / f"a{seed}", config_of("tlora"), seed)
    store.put("v1.0/a", tmp_path / "a2")
    store.put("b", tmp_path / "a3")
    model = peft.PeftModel.from_pretrained(base(), tmp_path / "a1")
    loaded = store.load_into(model, {"v1.0/a": "one", "b": "two"})
    assert loaded is model
    assert loaded.active_adapter == "default"
    for name, folder in (("default", "a1"), ("one", "a2"), ("two", "a3")):
        loaded.set_adapter(name)
        expected = peft.PeftModel.from_pretrained(base(), tmp_path / folder).eval()
        assert torch.equal(loaded(input_ids=WORDS).logits, expected(input_ids=WORDS).logits)


def test_name_that_a_module_cannot_have_is_refused(store, tmp_path):
    store.put("v1.0", adapter(tmp_path / "a", config_of("tlora"), 1))
    with pytest.raises(SpecError, match=r"'v1\.0'"):
        store.load_into(base(), ["v1.0"])
    with pytest.raises(SpecError, match="no adapter is named"):
        store.load_into(base(), [])
    model = store.load_into(base(), {"v1.0": "a"})
    with pytest.raises(SpecError, match="'a'"):
        store.load_into(model, {"v1.0": "a"})


def test_adapter_for_another_base_is_refused(store, tmp_path):
    store.put("a", adapter(tmp_path / "a", peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"), 1))
    with pytest.raises(AdapterFileError, match="does not fit"):
        store.load_into(base(hidden_size=8), ["a"])


def test_adapter_with_more_or_fewer_tensors_than_its_configuration_says_is_refused(store, tmp_path):
    saved = rankfold.open_adapter(adapter(tmp_path / "a", config_of("tlora"), 1))
    tensors = dict(list(saved.tensors.items())[1:])
    fewer = rankfold.SavedAdapter(saved.config, Layout(saved.layout.entries[1:]), tensors)
    store.put("fewer", fewer)
    with pytest.raises(AdapterFileError, match="lacks"):
        store.load_into(base(), ["fewer"])
    tensors = {**saved.tensors, "more": torch.zeros(1)}
    entries = tuple(TensorEntry.of(name, tensor) for name, tensor in tensors.items())
    store.put("more", rankfold.SavedAdapter(saved.config, Layout(entries), tensors))
    with pytest.raises(AdapterFileError, match="has no place for 'more'"):
        store.load_into(base(), ["more"])


def test_configuration_of_an_unknown_method_or_field_is_refused(store, tmp_path):
    saved = rankfold.open_adapter(adapter(tmp_path / "a", config_of("tlora"), 1))
    for old, new in ((b'"RANKFOLD"', b'"NEWER"'), (b'"alpha":', b'"newer": 1,\n  "alpha":')):
        changed = rankfold.SavedAdapter(saved.config.replace(old, new), saved.layout, saved.tensors)
        store.put("a", changed, replace=True)
        with pytest.raises(AdapterFileError, match="configuration"):
            store.load_into(base(), ["a"])
