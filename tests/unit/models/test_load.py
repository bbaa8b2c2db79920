"""Saved adapters come back bit for bit, or say why not."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.models.base import resolve_model
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME
from rankfold.store.loading import load_adapter
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from tests.support.tiny_models import write_bert

NAMES = ("bad", "good")
TOKENS = torch.tensor([[2, 4, 10, 3]])


def _base(folder, *, seed=0):
    torch.manual_seed(seed)
    return CLASSIFICATION.load(resolve_model(str(folder)), NAMES).model


@pytest.fixture
def adapter(tiny_bert, tmp_path):
    """An adapter whose every weight has been moved, and its logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(
            _base(tiny_bert), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.eval()(TOKENS).logits


def test_a_loaded_adapter_says_the_same_bit_for_bit(tiny_bert, adapter):
    folder, logits = adapter
    # Another seed draws another head, which the adapter's own has to replace.
    base = _base(tiny_bert, seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load_adapter(base, folder)(TOKENS).logits, logits)


def test_sizes_are_those_of_the_values(adapter):
    folder, _ = adapter
    sizes = rankfold.open_adapter(folder).sizes
    assert sum(sizes.values()) == 4 * (2 * 2 * (2 * 16) + 2 * 16 + 2)
    assert sum(sizes.values()) < (folder / WEIGHTS_NAME).stat().st_size


def _truncate(folder):
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100])


def _no_header(folder):
    (folder / WEIGHTS_NAME).write_bytes(b"")


def _garbage(folder):
    (folder / WEIGHTS_NAME).write_bytes(b"\xff" * 500)


def _no_weights(folder):
    (folder / WEIGHTS_NAME).unlink()


def _no_config(folder):
    (folder / CONFIG_NAME).unlink()


def _half_config(folder):
    path = folder / CONFIG_NAME
    path.write_text(path.read_text()[:50])


def _list_config(folder):
    (folder / CONFIG_NAME).write_text("[]")


def _unknown_method(folder):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "NOVEL"}))


def _without_method(folder):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "peft_type"}))


def _unknown_field(folder):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"novelty": 1}))


def _other_rank(folder):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))


def _other_targets(folder):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["query", "value"]}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_truncate, "is damaged"),
        (_no_header, "is damaged"),
        (_garbage, "is damaged"),
        (_no_weights, f"has no {WEIGHTS_NAME}"),
        (_no_config, f"has no {CONFIG_NAME}"),
        (_half_config, f"{CONFIG_NAME} is damaged"),
        (_list_config, "names no method"),
        (_unknown_method, "unknown method 'NOVEL'"),
        (_without_method, "names no method"),
        (_unknown_field, "unknown fields 'novelty'; update"),
        (_other_rank, r"does not fit this base model \(size mismatch for .*\[3, 16\]\)\); name"),
        (_other_targets, "lacks 'bert"),
    ],
)
def test_a_spoilt_adapter_is_a_clear_error(tiny_bert, adapter, spoil, words):
    folder, _ = adapter
    spoil(folder)
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(_base(tiny_bert), folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": "eight"}, "is damaged .r='eight' cannot be read; give a whole number"),
        ({"r": 0}, "is damaged .r=0"),
        ({"down": {"kind": "dens"}}, "is damaged .down=.* describes no factor"),
        ({"task_type": "GUESS"}, "is damaged .unknown task type 'GUESS'"),
        ({"base_fingerprint": 3}, "is damaged .base_fingerprint=3"),
    ],
    ids=str,
)
def test_a_damaged_configuration_of_ours_is_a_clear_error(tiny_bert, adapter, change, words):
    folder, _ = adapter
    config = rankfold.config("lora", r=2, target_modules=["query"], task_type="SEQ_CLS").to_dict()
    (folder / CONFIG_NAME).write_text(json.dumps(config | change, default=list))
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(_base(tiny_bert), folder)


@pytest.mark.parametrize("shape", [{"hidden_size": 8}, {"layers": 1}, {"layers": 3}], ids=str)
def test_an_adapter_of_another_base_is_refused(adapter, tmp_path, shape):
    folder, _ = adapter
    other = write_bert(tmp_path / "other", **shape)
    with pytest.raises(AdapterFileError, match=r"does not fit this base model.*name the model"):
        load_adapter(_base(other), folder)


def test_a_folder_that_does_not_exist_is_no_adapter(tiny_bert, tmp_path):
    with pytest.raises(AdapterFileError, match="there is no folder or file"):
        load_adapter(_base(tiny_bert), tmp_path / "nowhere")
