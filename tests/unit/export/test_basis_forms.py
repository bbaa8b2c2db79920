"""An adapter on a learned basis in forms that others read: GGUF, a packed file, and vLLM's resolver."""

import asyncio
import sys

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import rankfold
from rankfold.export.base import find_base, open_rankfold_adapter
from rankfold.export.bases import BasisRequest, learn_basis
from rankfold.export.formats.gguf import FORMAT as GGUF
from rankfold.export.verify import has_difference, verify
from rankfold.serve.folded import FoldedCache
from rankfold.serve.vllm import LoadedAdapters, StoreResolver
from rankfold.store.loading import load_adapter
from rankfold.store.saved import open_adapter
from tests.support import vllm_double
from tests.support.adapters import save_adapter
from tests.support.toys import toy_sizes_allowed

TARGETS = ["q_proj", "down_proj"]
IDS = torch.tensor([[4, 5, 6, 7, 8, 9]])


def model_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def scores(model):
    return model.eval()(input_ids=IDS).logits


@pytest.fixture
def adapter(tiny_llama, tmp_path, monkeypatch):
    """An adapter on a basis that was learned from another one, with the basis' file beside it."""
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path / "cache"))
    save_adapter(tmp_path / "source", tiny_llama, "lora", target_modules=TARGETS)
    learn_basis(
        BasisRequest(sources=[tmp_path / "source"], out=tmp_path / "a.basis", rank=3, model=str(tiny_llama))
    )
    with toy_sizes_allowed():
        options = {"basis": str(tmp_path / "a.basis"), "r": 3, "target_modules": TARGETS}
        config = rankfold.config("basis_core", **options, task_type="CAUSAL_LM", init_weights=False)
        peft.get_peft_model(model_of(tiny_llama), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_file_for_llama_cpp_has_the_updates(adapter, tiny_llama, reviews, tmp_path):
    certificate = rankfold.export_lora(adapter, tmp_path / "out", to="gguf", data=str(reviews))
    assert certificate.worst_written.written < 1e-6
    assert not has_difference(verify(tmp_path / "out", data=str(reviews)))
    model = load_adapter(model_of(tiny_llama), adapter)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    name, geometry = "model.layers.0.mlp.down_proj", layer.rankfold_adapters["default"].geometry
    base = find_base(open_rankfold_adapter(adapter), str(tiny_llama))
    update = GGUF.read_updates({name: geometry}, base, tmp_path / "out")[name]
    torch.testing.assert_close(update.matrix().float(), layer.get_delta_weight("default"))


def test_packed_file_gives_the_same_outputs(adapter, tiny_llama, tmp_path):
    rankfold.pack_adapter(adapter, tmp_path / "adapter.rankfold")
    expected = scores(load_adapter(model_of(tiny_llama), adapter))
    packed = load_adapter(model_of(tiny_llama), open_adapter(tmp_path / "adapter.rankfold"))
    torch.testing.assert_close(scores(packed), expected, rtol=0, atol=0)
    assert not torch.allclose(expected, scores(model_of(tiny_llama)))


def test_resolver_of_vllm_folds_it_to_plain_lora(adapter, tiny_llama, tmp_path, monkeypatch):
    registry = vllm_double.Registry()
    for name, module in vllm_double.modules(registry).items():
        monkeypatch.setitem(sys.modules, name, module)
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        store.put("a", adapter)
        base = store.record("a").base
    resolver = StoreResolver(tmp_path / "store.db", FoldedCache(tmp_path / "vllm", 1 << 30))
    resolver.table = LoadedAdapters(resolver, {})
    request = asyncio.run(resolver.resolve_lora(base, "a"))
    assert peft.PeftConfig.from_pretrained(request.lora_path).peft_type == "LORA"
    plain = peft.PeftModel.from_pretrained(model_of(tiny_llama), request.lora_path)
    expected = scores(load_adapter(model_of(tiny_llama), adapter))
    torch.testing.assert_close(scores(plain), expected, rtol=1e-4, atol=1e-5)
