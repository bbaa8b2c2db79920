"""vLLM's resolver interface, by a small double of it: a name in the store becomes a folder of plain LoRA.

The double stands for the interface only; that vLLM itself serves the folder is not tested here.
"""

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import rankfold
from rankfold import AdapterStore, NotExactError, StoreError
from tests.support import vllm_double

BASE = "tiny/llama"
GROUP = "vllm.general_plugins"
WORDS = torch.arange(8).reshape(1, 8)


def base():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).eval()
    model.name_or_path = BASE
    return model


def saved(folder, config):
    peft.get_peft_model(base(), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def store(tmp_path):
    with AdapterStore(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
def vllm(root, tmp_path, monkeypatch):
    """What vLLM has after it loaded the plugin."""
    registry = vllm_double.Registry()
    for name, module in vllm_double.modules(registry).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("RANKFOLD_STORE", str(tmp_path / "store.db"))
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path / "cache"))

    def start():
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
        (plugin,) = project["entry-points"][GROUP].items()
        EntryPoint(*plugin, GROUP).load()()
        return registry

    return start


def options(method):
    return rankfold.config(
        method, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_weights=False
    )


@pytest.mark.parametrize(
    "config",
    [
        options("relayed_lora"),
        options("tlora"),
        peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    ],
    ids=["relayed_lora", "tlora", "peft:lora"],
)
def test_adapter_that_vllm_asks_for_lies_there_as_plain_lora(store, vllm, tmp_path, config):
    folder = saved(tmp_path / "adapter", config)
    store.put("customers/a", folder)
    request = vllm().ask(BASE, "customers/a")
    assert request.lora_name == "customers/a"
    assert peft.PeftConfig.from_pretrained(request.lora_path).peft_type == "LORA"
    expected = peft.PeftModel.from_pretrained(base(), folder).eval()(WORDS).logits
    plain = peft.PeftModel.from_pretrained(base(), request.lora_path).eval()(WORDS).logits
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)
    assert (expected - base()(WORDS).logits).abs().max() > 1e-3


def test_adapter_is_folded_once_and_anew_when_it_was_replaced(store, vllm, tmp_path):
    store.put("a", saved(tmp_path / "one", options("tlora")))
    registry = vllm()
    first = registry.ask(BASE, "a")
    written = Path(first.lora_path).stat().st_mtime_ns
    assert registry.ask(BASE, "a") == first
    assert Path(first.lora_path).stat().st_mtime_ns == written
    store.put("a", saved(tmp_path / "two", options("relayed_lora")), replace=True)
    second = registry.ask(BASE, "a")
    assert second.lora_int_id != first.lora_int_id
    assert second.lora_path != first.lora_path


def test_unknown_name_and_other_base_are_left_to_other_resolvers(store, vllm, tmp_path):
    store.put("a", saved(tmp_path / "one", options("tlora")))
    registry = vllm()
    assert registry.ask(BASE, "b") is None
    assert registry.ask("another/model", "a") is None


def test_adapter_that_is_no_plain_lora_is_refused_with_the_reason_and_leaves_nothing(store, vllm, tmp_path):
    store.put("routed", saved(tmp_path / "one", options("hydra_lora")))
    store.put("lokr", saved(tmp_path / "two", peft.LoKrConfig(target_modules=["q_proj"], r=2)))
    registry = vllm()
    with pytest.raises(NotExactError, match="rout"):
        registry.ask(BASE, "routed")
    with pytest.raises(NotExactError, match="'lokr' is no LoRA"):
        registry.ask(BASE, "lokr")
    assert not list((tmp_path / "cache" / "vllm").iterdir())


def test_plugin_is_silent_without_a_store_and_refuses_one_that_is_not_there(vllm, monkeypatch):
    with pytest.raises(StoreError, match="there is no store"):
        vllm()
    monkeypatch.delenv("RANKFOLD_STORE")
    assert vllm().resolvers == {}
