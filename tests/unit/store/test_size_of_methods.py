"""Every byte of every PEFT method is explained, and what is there in vain is left out and comes back."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import rankfold
from rankfold.presets import discover
from rankfold.store.size import explain
from tests.support.peft_methods import CONFIG, METHODS, WEIGHTS, files, save_peft
from tests.support.tiny_models import write_llama

# What PEFT saves although a seed in the configuration decides it, and the kind of the copies beside it.
SEEDED = {
    "frod": {"frod_s_indices.self_query", "frod_s_indices.self_value"},
    "pvera": {"pvera_A", "pvera_B"},
    "randlora": {"randlora_A", "randlora_B"},
    "randlora_sparse": {"randlora_A", "randlora_B"},
    "randlora_very_sparse": {"randlora_A", "randlora_B"},
    "shira": {"shira_indices"},
    "tinylora": {"tinylora_P"},
    "unilora": {"unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"},
    "vera": {"vera_A", "vera_B"},
}
# What PEFT saves for every layer although they share it.
SHARED = {
    "lily": {"lily_A, again", "lily_B, again"},
    "randlora": {"randlora_A, again", "randlora_B, again"},
    "randlora_sparse": {"randlora_A, again", "randlora_B, again"},
    "randlora_very_sparse": {"randlora_A, again", "randlora_B, again"},
    "shira": {"shira_indices, again"},
}
# What no training moves but what comes from the base model.
FROM_BASE = {
    "adamss": {"adamss_newB"},
    "delora": {"delora_w_norm"},
    "frod": {"frod_V.self_query", "frod_V.self_value", "frod_s_size.self_query", "frod_s_size.self_value"},
    "tinylora": {"tinylora_A", "tinylora_B"},
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


def roles(explanation, kind):
    return {part.name for part in explanation.parts if part.kind == kind}


@pytest.mark.parametrize("method", METHODS)
def test_parts_and_tensors_add_up_to_the_file(saved, method):
    explanation = explain(saved(method))
    size = (saved(method) / WEIGHTS).stat().st_size
    assert explanation.file_bytes == size
    assert sum(part.bytes for part in explanation.parts) == size
    assert sum(part.bytes for part in explanation.tensors) == size


@pytest.mark.parametrize("method", discover())
def test_adapter_of_rankfold_is_learned_but_for_its_header_and_comes_back(method, tmp_path):
    blocks = ["intermediate.dense", "output.dense"]
    folder = save_peft(tmp_path / "ours", rankfold.config(method, r=4, target_modules=["query", *blocks]))
    explanation = explain(folder)
    assert sum(part.bytes for part in explanation.parts) == (folder / WEIGHTS).stat().st_size
    assert {part.kind for part in explanation.parts} <= {"factor", "header", "padding"}
    assert not any(part.name.startswith("rankfold") for part in explanation.parts)
    rankfold.shrink_adapter(folder, tmp_path / "shrunk")
    assert rankfold.expand_adapter(tmp_path / "shrunk", tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
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
    (frozen,) = [part for part in explanation.parts if part.kind == "frozen"]
    assert frozen.bytes == 4 * base.config.vocab_size * base.config.hidden_size


@pytest.mark.parametrize("method", METHODS)
def test_only_what_peft_draws_or_copies_is_not_learned(saved, method):
    explanation = explain(saved(method))
    assert roles(explanation, "regenerable") == SEEDED.get(method, set())
    assert roles(explanation, "duplicate") == SHARED.get(method, set())
    assert roles(explanation, "frozen") == FROM_BASE.get(method, set())


@pytest.mark.parametrize("regenerate", [False, True], ids=["portable", "any"])
@pytest.mark.parametrize("method", METHODS)
def test_shrunk_adapter_comes_back_byte_for_byte(saved, method, regenerate, tmp_path):
    file, again = tmp_path / "shrunk", tmp_path / "again"
    shrinkage = rankfold.shrink_adapter(saved(method), file, regenerate=regenerate)
    assert rankfold.expand_adapter(file, again)
    assert files(again) == files(saved(method))
    assert shrinkage.bytes_after == file.stat().st_size
    if not regenerate:
        assert (
            shrinkage.duplicate_bytes + shrinkage.regenerable_bytes == explain(saved(method)).shrinkable_bytes
        )


@pytest.mark.parametrize("method", METHODS)
def test_shrunk_file_is_what_is_left_and_a_few_hundred_bytes(saved, method, tmp_path):
    rankfold.shrink_adapter(saved(method), tmp_path / "shrunk", regenerate=True)
    left = {"factor", "head", "frozen"}
    kept = sum(part.bytes for part in explain(saved(method)).parts if part.kind in left)
    explanation = explain(tmp_path / "shrunk")
    assert sum(part.bytes for part in explanation.parts) == explanation.file_bytes
    assert sum(part.bytes for part in explanation.parts if part.kind in left) <= kept
    assert explanation.file_bytes <= kept + 2500


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("method", ["lora", "vera", "lily", "unilora"])
def test_rounded_adapter_is_within_the_error_it_states_and_never_called_exact(saved, method, dtype, tmp_path):
    file, again = tmp_path / "shrunk", tmp_path / "again"
    shrinkage = rankfold.shrink_adapter(saved(method), file, dtype=dtype)
    assert not rankfold.expand_adapter(file, again)
    before, after = load_file(saved(method) / WEIGHTS), load_file(again / WEIGHTS)
    bound = {"bf16": 2**-8, "int8": 1 / 254}[dtype] * 1.01
    assert 0 < max(shrinkage.errors.values()) <= bound
    largest = max(
        ((after[name] - tensor).abs().max() / tensor.abs().max()).item()
        for name, tensor in before.items()
        if tensor.is_floating_point()
    )
    assert largest == pytest.approx(max(shrinkage.errors.values()))
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    assert (again / CONFIG).read_bytes() == (saved(method) / CONFIG).read_bytes()


@pytest.mark.parametrize("method", SEEDED)
def test_proof_fails_when_one_number_differs(saved, method, tmp_path):
    tensors = load_file(saved(method) / WEIGHTS)
    role = min(SEEDED[method])
    name = min(name for name in tensors if f".{role}" in name)
    tensors[name].view(-1)[-1] += 1
    (tmp_path / CONFIG).write_bytes((saved(method) / CONFIG).read_bytes())
    save_file(tensors, tmp_path / WEIGHTS)
    explanation = explain(tmp_path)
    assert role in roles(explanation, "frozen")
    rankfold.shrink_adapter(tmp_path, tmp_path / "shrunk")
    rankfold.expand_adapter(tmp_path / "shrunk", tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()


@pytest.mark.parametrize("method", SEEDED)
@pytest.mark.parametrize("seed", [7, -3, 10**30])
def test_proof_fails_when_the_seed_is_another(saved, method, seed, tmp_path):
    config = json.loads((saved(method) / CONFIG).read_bytes())
    seeds = {"projection_prng_key", "projection_seed", "proj_seed", "random_seed"} & set(config)
    (tmp_path / CONFIG).write_text(json.dumps(config | dict.fromkeys(seeds, seed)))
    (tmp_path / WEIGHTS).write_bytes((saved(method) / WEIGHTS).read_bytes())
    explanation = explain(tmp_path)
    assert seeds
    assert not roles(explanation, "regenerable")
    assert SEEDED[method] <= roles(explanation, "frozen")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["vera", "pvera", "randlora", "randlora_sparse", "tinylora", "unilora"])
def test_seed_is_found_when_the_base_has_half_precision(method, dtype, tmp_path):
    explanation = explain(save_peft(tmp_path / "half", METHODS[method](), dtype=dtype))
    assert roles(explanation, "regenerable") == SEEDED[method]


def test_frozen_down_factors_of_lora_fa_are_noticed_but_count_as_learned(tmp_path):
    folder = save_peft(tmp_path / "lora", METHODS["lora"]())
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if "lora_A" in name:
            torch.nn.init.kaiming_uniform_(tensor, a=5**0.5)
            tensor.view(-1)[0] = 0.25  # the draw of 64 numbers need not come near its end
    save_file(tensors, folder / WEIGHTS)
    explanation = explain(folder)
    assert any("LoRA-FA" in hint for hint in explanation.hints)
    assert {"lora_A", "lora_B"} <= roles(explanation, "factor")
    tensors[min(name for name in tensors if "lora_A" in name)].view(-1)[3] = 0.26
    save_file(tensors, folder / WEIGHTS)
    assert not explain(folder).hints
