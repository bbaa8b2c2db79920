"""Every byte of every PEFT method is explained: learned, frozen, or a copy."""

import peft
import pytest
import transformers
from safetensors.torch import load_file

import rankfold
from rankfold.presets import discover
from rankfold.store.size import explain
from tests.support.peft_methods import METHODS, WEIGHTS, save_peft
from tests.support.tiny_models import write_llama

# Tensors that no training moves: drawn from a seed, or taken from the base model.
FROZEN = {
    "adamss": {"adamss_newB"},
    "delora": {"delora_w_norm"},
    "frod": {
        f"frod_{name}.self_{layer}" for name in ("V", "s_size", "s_indices") for layer in ("query", "value")
    },
    "pvera": {"pvera_A", "pvera_B"},
    "randlora": {"randlora_A", "randlora_B"},
    "randlora_sparse": {"randlora_A", "randlora_B"},
    "randlora_very_sparse": {"randlora_A", "randlora_B"},
    "shira": {"shira_indices"},
    "tinylora": {"tinylora_A", "tinylora_B", "tinylora_P"},
    "unilora": {"unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"},
    "vera": {"vera_A", "vera_B"},
}
# Tensors that PEFT saves for every layer although the layers share them.
SHARED = {
    "lily": {"lily_A, again", "lily_B, again"},
    "randlora": {"randlora_A, again", "randlora_B, again"},
    "randlora_sparse": {"randlora_A, again", "randlora_B, again"},
    "randlora_very_sparse": {"randlora_A, again", "randlora_B, again"},
    "shira": {"shira_indices, again"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every method's adapter, saved once."""
    folder = tmp_path_factory.mktemp("methods")
    found = {}

    def of(method):
        if method not in found:
            found[method] = save_peft(folder / method, METHODS[method]())
        return found[method]

    return of


def roles(explanation, type_):
    return {part.name for part in explanation.parts if part.type == type_}


@pytest.mark.parametrize("method", METHODS)
def test_parts_and_tensors_add_up_to_the_file(saved, method):
    explanation = explain(saved(method))
    size = (saved(method) / WEIGHTS).stat().st_size
    assert explanation.file_bytes == size
    assert sum(part.bytes for part in explanation.parts) == size
    assert sum(part.bytes for part in explanation.tensors) == size


@pytest.mark.parametrize("method", discover())
def test_adapter_of_rankfold_is_learned_but_for_its_header(method, tmp_path):
    blocks = ["intermediate.dense", "output.dense"]
    folder = save_peft(tmp_path / "ours", rankfold.config(method, r=4, target_modules=["query", *blocks]))
    explanation = explain(folder)
    assert sum(part.bytes for part in explanation.parts) == (folder / WEIGHTS).stat().st_size
    assert {part.type for part in explanation.parts} <= {"factor", "header", "padding"}
    assert not any(part.name.startswith("rankfold") for part in explanation.parts)
    rankfold.pack_adapter(folder, tmp_path / "packed")
    packed = explain(tmp_path / "packed")
    assert sum(part.bytes for part in packed.parts) == (tmp_path / "packed").stat().st_size
    assert packed.learned_bytes == explanation.learned_bytes


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_embeddings_that_peft_saves_beside_an_adapter_are_of_the_base(tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(write_llama(tmp_path / "base"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "saved")
    names = [name for name in load_file(tmp_path / "saved" / WEIGHTS) if "lora" not in name]
    assert names == ["base_model.model.model.embed_tokens.base_layer.weight"]
    explanation = explain(tmp_path / "saved")
    (frozen,) = [part for part in explanation.parts if part.type == "frozen"]
    assert frozen.bytes == 4 * base.config.vocab_size * base.config.hidden_size


@pytest.mark.parametrize("method", METHODS)
def test_only_copies_and_frozen_tensors_are_not_learned(saved, method):
    explanation = explain(saved(method))
    assert roles(explanation, "duplicate") == SHARED.get(method, set())
    assert roles(explanation, "frozen") == FROZEN.get(method, set())
