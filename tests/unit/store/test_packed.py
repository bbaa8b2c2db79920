"""A packed adapter is small, and gives back the directory it was made from, byte for byte."""

import json
from math import prod

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

import rankfold
from rankfold.errors import AdapterFileError, OutputExistsError, SpecError
from rankfold.presets import discover
from rankfold.store.container import Container, encode, read
from rankfold.store.size import explain
from tests.support.minilm_layers import TARGET_SETS, minilm, targets_for
from tests.support.peft_methods import METHODS, save_peft

__all__ = ["minilm"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPELLED = json.dumps({"peft_type": "LORA", "r": 2}, indent=2, sort_keys=True)
TENSORS = {"layer.lora_A.weight": torch.randn(2, 3), "layer.lora_B.weight": torch.randn(3, 2)}


def write_adapter(folder, *, config=SPELLED, weights=None):
    """Write a directory as `save_pretrained` does."""
    folder.mkdir()
    (folder / CONFIG).write_text(config, "utf-8")
    if weights is None:
        save_file(TENSORS, folder / WEIGHTS, metadata={"format": "pt"})
    else:
        (folder / WEIGHTS).write_bytes(weights)
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def there_and_back(folder, **options):
    """Pack and unpack; return what came of packing, and the new directory."""
    file, again = folder.with_suffix(".rankfold"), folder.with_name(f"{folder.name}-again")
    packed = rankfold.pack_adapter(folder, file, **options)
    rankfold.unpack_adapter(file, again)
    assert file.stat().st_size == packed.file_bytes
    return packed, again


@TARGET_SETS
@pytest.mark.parametrize("method", discover())
def test_files_are_as_large_as_what_was_learned_and_come_back(minilm, method, targets, tmp_path):
    model = peft.get_peft_model(minilm, rankfold.config(method, target_modules=targets_for(method, targets)))
    try:
        model.save_pretrained(tmp_path / "adapter")
        count = rankfold.count_parameters(model)
    finally:
        model.unload()
    (tmp_path / "adapter" / "README.md").unlink(missing_ok=True)
    learned = 4 * count.stored
    with safe_open(tmp_path / "adapter" / WEIGHTS, "pt") as stored:
        sizes = [stored.get_slice(key).get_shape() for key in stored.keys()]  # noqa: SIM118 (no dictionary)
    assert sum(map(prod, sizes)) == count.stored == count.trainable
    assert (tmp_path / "adapter" / WEIGHTS).stat().st_size <= 1.01 * learned + 200 * len(sizes)
    packed, again = there_and_back(tmp_path / "adapter")
    assert packed.learned_bytes == learned
    assert packed.file_bytes <= 1.01 * learned + 1024
    assert files(again) == files(tmp_path / "adapter")


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(target_modules=["query"], r=2),
        peft.VeraConfig(target_modules=["query"], r=2),
        peft.LoKrConfig(target_modules=["query"], r=2),
        peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_adapter_of_another_method_comes_back(config, tmp_path):
    base = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").unlink(missing_ok=True)
    _, again = there_and_back(tmp_path / "adapter")
    assert files(again) == files(tmp_path / "adapter")


@pytest.mark.parametrize(
    "config",
    ['{"peft_type":"LORA"}', '{"r": 1, "peft_type": "LORA"}\n', '{"peft_type": "Löra", "x": 1e-05}'],
    ids=["compact", "another order", "letters"],
)
def test_configuration_of_any_spelling_comes_back(config, tmp_path):
    folder = write_adapter(tmp_path / "adapter", config=config)
    assert files(there_and_back(folder)[1]) == files(folder)


def safetensors_of(header: str, values: bytes) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + values


SPELLINGS = {
    "not filled with spaces": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "another order": (
        '{"b":{"dtype":"F16","shape":[1],"data_offsets":[2,4]},'
        '"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
    ),
    "wide": '{ "a" : { "shape" : [1], "dtype" : "F32", "data_offsets" : [0, 4] } }   ',
    "metadata behind": '{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"__metadata__":{"x":"y"}}',
    "nothing": "{}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_weights_file_of_any_spelling_comes_back(spelling, tmp_path):
    header = SPELLINGS[spelling]
    weights = safetensors_of(header, b"\1\2\3\4" if "data_offsets" in header else b"")
    folder = write_adapter(tmp_path / "adapter", weights=weights)
    assert files(there_and_back(folder)[1]) == files(folder)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=4),
        st.tuples(st.lists(st.integers(0, 3), max_size=2), st.sampled_from(["f4", "f2", "i1", "i8", "?"])),
        max_size=4,
    ),
    st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), min_size=1, max_size=1),
)
def test_any_weights_file_of_the_library_needs_no_header_kept(tmp_path_factory, shapes, metadata):
    folder = tmp_path_factory.mktemp("any") / "adapter"
    weights = save({name: np.ones(shape, dtype) for name, (shape, dtype) in shapes.items()}, metadata)
    write_adapter(folder, weights=weights)
    assert files(there_and_back(folder)[1]) == files(folder)
    assert "weights_header" not in read(folder.with_suffix(".rankfold")).header


@pytest.mark.parametrize(("dtype", "kept"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_rounded_adapter_is_half_as_large_and_its_error_is_known(dtype, kept, tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    packed, again = there_and_back(folder, dtype=dtype)
    assert packed.learned_bytes == 24
    assert 0 < packed.relative_error < 0.01
    state = peft.utils.load_peft_weights(str(again), device="cpu")
    assert all(torch.equal(state[name], tensor.to(kept)) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("method", ["lily", "randlora", "shira"])
def test_tensor_that_peft_saves_again_for_each_layer_is_stored_once(method, tmp_path):
    folder = save_peft(tmp_path / "adapter", METHODS[method]())
    packed, again = there_and_back(folder)
    assert files(again) == files(folder)
    copies = explain(folder).bytes_by_type["duplicate"]
    assert packed.learned_bytes == sum(rankfold.open_adapter(folder).sizes.values()) - copies
    assert "duplicate" not in explain(folder.with_suffix(".rankfold")).bytes_by_type


@given(st.lists(st.sampled_from([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [3.0]]), max_size=7))
def test_any_copies_come_back_in_their_order(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("any") / "adapter"
    weights = save({f"x{index}": np.array(value) for index, value in enumerate(values)})
    packed, again = there_and_back(write_adapter(folder, weights=weights))
    assert files(again) == files(folder)
    distinct = {tuple(value) for value in values if len(set(value)) > 1}
    assert packed.learned_bytes == 8 * sum(len(value) for value in (*distinct, *filter(_constant, values)))


def _constant(value):
    return len(set(value)) == 1


def test_lossless_packing_has_no_error(tmp_path):
    assert there_and_back(write_adapter(tmp_path / "adapter"))[0].relative_error == 0
    assert there_and_back(write_adapter(tmp_path / "other"), dtype="fp32")[0].relative_error == 0


def test_value_too_large_for_the_type_is_refused(tmp_path):
    folder = write_adapter(tmp_path / "adapter", weights=save({"x": np.full(1, 1e5, np.float32)}))
    with pytest.raises(AdapterFileError, match="'x' has values too large"):
        rankfold.pack_adapter(folder, tmp_path / "file", dtype="fp16")
    assert not (tmp_path / "file").exists()


def test_other_files_are_named_as_left_out(tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    (folder / "run.json").write_text("{}")
    assert rankfold.pack_adapter(folder, tmp_path / "file").left_out == ("run.json",)


def test_pickle_is_refused_unopened(tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterFileError, match="pickle"):
        rankfold.pack_adapter(folder, tmp_path / "file")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_directory_without_a_file_is_refused(name, tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    (folder / name).unlink()
    with pytest.raises(AdapterFileError, match=name):
        rankfold.pack_adapter(folder, tmp_path / "file")
    with pytest.raises(AdapterFileError, match="there is no folder"):
        rankfold.pack_adapter(tmp_path / "absent", tmp_path / "file")


def test_nothing_is_replaced_unasked(tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    rankfold.pack_adapter(folder, tmp_path / "file")
    with pytest.raises(OutputExistsError):
        rankfold.pack_adapter(folder, tmp_path / "file")
    rankfold.pack_adapter(folder, tmp_path / "file", overwrite=True)
    with pytest.raises(OutputExistsError):
        rankfold.unpack_adapter(tmp_path / "file", folder)


def test_container_of_another_type_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(encode(Container("record", {}, {})))
    with pytest.raises(AdapterFileError, match="'record'"):
        rankfold.unpack_adapter(tmp_path / "file", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_place_is_made_if_it_can_be_and_refused_if_not(tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    rankfold.pack_adapter(folder, tmp_path / "new" / "file")
    rankfold.unpack_adapter(tmp_path / "new" / "file", tmp_path / "other" / "adapter")
    assert files(tmp_path / "other" / "adapter") == files(folder)
    with pytest.raises(SpecError, match="cannot write"):
        rankfold.pack_adapter(folder, tmp_path / "new" / "file" / "below")
    with pytest.raises(SpecError, match="cannot write"):
        rankfold.unpack_adapter(tmp_path / "new" / "file", tmp_path / "new" / "file" / "below")
