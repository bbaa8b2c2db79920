"""A LoRA for llama.cpp has its names, its order of rows, and a scaling of 1."""

import numpy as np
import pytest
import torch

from rankfold.adapter.geometry import Embedding, Linear
from rankfold.errors import AdapterFileError, NotExactError, SpecError
from rankfold.export.fold import LowRankUpdate, relative_error
from rankfold.export.formats.gguf import ARCHITECTURES, gguf_layout, read_gguf, write_gguf

gguf = pytest.importorskip("gguf", reason="needs the extra 'gguf'")

QUERY, KEY, DOWN = (
    f"model.layers.1.{leaf}" for leaf in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
)


def folded(in_features, out_features, rank):
    generator = torch.Generator().manual_seed(rank)
    down, up = (
        torch.randn(*size, generator=generator) for size in ((rank, in_features), (out_features, rank))
    )
    return LowRankUpdate(down, up, Linear(in_features, out_features))


@pytest.fixture
def layers():
    return {QUERY: folded(24, 24, 2), KEY: folded(24, 12, 2), DOWN: folded(40, 24, 2)}


@pytest.fixture
def model():
    return gguf_layout("llama", blocks=2, heads=4, key_value_heads=2)


def written(layers, model, path, dtype=torch.float32):
    write_gguf(layers, model, path, dtype)
    return gguf.GGUFReader(str(path))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-12), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)]
)
def test_layers_of_a_file_are_those_that_were_written(model_type, dtype, bound, layers, tmp_path):
    model = gguf_layout(model_type, blocks=2, heads=4, key_value_heads=2)
    known = {DOWN: layers[DOWN]} if model_type == "phi3" else layers
    write_gguf(known, model, tmp_path / "a.gguf", dtype)
    read = read_gguf(tmp_path / "a.gguf", model, {name: each.geometry for name, each in known.items()})
    for name, each in known.items():
        assert relative_error(read[name], each) <= bound


def test_rows_are_those_that_transformers_turns_back(layers, model, tmp_path):
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    reader = written(layers, model, tmp_path / "a.gguf")
    ups = {each.name: np.array(each.data) for each in reader.tensors}
    turn = LlamaTensorProcessor()._reverse_permute_weights
    query, key = (ups[f"blk.1.attn_{leaf}.weight.lora_b"] for leaf in "qk")
    assert np.array_equal(turn(query, 4, None), layers[QUERY].up)
    assert np.array_equal(turn(key, 4, 2), layers[KEY].up)
    assert not np.array_equal(query, layers[QUERY].up)


@pytest.mark.parametrize(("ranks", "alpha"), [((2, 2), 2.0), ((2, 3), 0.0)])
def test_scaling_is_1_for_every_layer(ranks, alpha, model, tmp_path):
    layers = {QUERY: folded(24, 24, ranks[0]), DOWN: folded(40, 24, ranks[1])}
    fields = written(layers, model, tmp_path / "a.gguf").fields
    assert fields["adapter.lora.alpha"].contents() == alpha  # llama.cpp divides by the rank, or takes 0 as 1
    assert fields["general.type"].contents() == "adapter"
    assert fields["adapter.type"].contents() == "lora"
    assert fields["general.architecture"].contents() == "llama"


def test_map_of_names_is_built_once_for_all_tensors(layers, tmp_path, monkeypatch):
    sizes = []
    build = gguf.get_tensor_name_map
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *size: sizes.append(size) or build(*size))
    layout = gguf_layout("llama", blocks=5, heads=4, key_value_heads=2)  # of no other test
    write_gguf(layers, layout, tmp_path / "a.gguf", torch.float32)
    read_gguf(tmp_path / "a.gguf", layout, {name: update.geometry for name, update in layers.items()})
    assert len(sizes) == 1


def test_layer_that_llama_cpp_lacks_is_refused(model, tmp_path):
    with pytest.raises(NotExactError, match=r"no weight for 'model\.layers.7.query'"):
        write_gguf({"model.layers.7.query": folded(8, 8, 2)}, model, tmp_path / "a.gguf", torch.float32)


def test_layer_that_is_not_linear_is_refused(model, tmp_path):
    tokens = LowRankUpdate(torch.ones(2, 9), torch.ones(5, 2), Embedding(9, 5))
    with pytest.raises(NotExactError, match=r"for linear layers, which 'model\.embed_tokens' is not"):
        write_gguf({"model.embed_tokens": tokens}, model, tmp_path / "a.gguf", torch.float32)


def test_model_type_that_is_not_known_is_refused():
    with pytest.raises(SpecError, match=r"unknown model type 'lama' of llama\.cpp\. Did you mean 'llama'"):
        gguf_layout("lama", blocks=2, heads=4, key_value_heads=2)


def test_damaged_file_is_refused(layers, model, tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(layers, model, path, torch.float32)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(AdapterFileError, match="export the adapter again"):
        read_gguf(path, model, {name: each.geometry for name, each in layers.items()})
