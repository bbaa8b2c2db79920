"""Warm start: a training begins with a saved adapter, in any form, or is refused by name."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from rankfold.errors import AdapterFileError, SpecError
from rankfold.files import sha256_of_file
from rankfold.runs.prepare import prepare
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.store.saved import write_packed
from rankfold.store.store import AdapterStore
from tests.support.tiny_models import review_rows, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def request_(tiny_bert, tmp_path):
    """A run of a second."""
    data = write_splits(tmp_path / "data", train=review_rows(48), validation=review_rows(16, seed=1))
    return RunRequest(
        model=str(tiny_bert),
        method="relayed_lora",
        options={"r": 4, "k": 2},
        data=str(data),
        out=tmp_path / "first",
        steps=4,
        batch_size=8,
        learning_rate=1e-2,
        max_length=32,
        seed=3,
    )


@pytest.mark.parametrize(
    ("method", "options"), [("relayed_lora", {"r": 4, "k": 2}), ("tlora", {"r": 4}), ("peft:lora", {"r": 4})]
)
def test_training_begins_with_the_weights_of_an_adapter_in_any_form(request_, tmp_path, method, options):
    request_ = replace(request_, method=method, options=options)
    run(request_)
    write_packed(request_.out, tmp_path / "packed.rankfold")
    with AdapterStore(tmp_path / "all.db") as store:
        store.put("a", request_.out)
    expected = load_file(request_.out / WEIGHTS)
    for number, form in enumerate(("first", "packed.rankfold", "all.db#a")):
        out, source = tmp_path / f"again{number}", str(tmp_path / form)
        record = run(replace(request_, out=out, init_from=source, learning_rate=1e-12, seed=0))
        weights = load_file(out / WEIGHTS)
        assert weights.keys() == expected.keys()
        assert all((weights[name] - item).abs().max() < 1e-9 for name, item in expected.items())
        assert record.init.sha256 == sha256_of_file(request_.out / WEIGHTS)
        assert (record.init.source, record.init.head) == (source, "taken")


def test_head_of_other_classes_is_new(request_, tmp_path, caplog):
    run(request_)
    rows = [{**row, "label": ("no", "yes")[row["label"]]} for row in review_rows(48)]
    other = write_splits(tmp_path / "other", train=rows, validation=rows[:16])
    with caplog.at_level("INFO", "rankfold"):
        setup = prepare(replace(request_, data=str(other), init_from=str(request_.out)))
    assert setup.init.head == "new"
    assert "is not taken over" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"options": {"r": 8, "k": 2}}, SpecError, "r was 4 and is 8"),
        ({"method": "tlora", "options": {"r": 4, "seed": 9}}, SpecError, "seed was 3 and is 9"),
        ({"method": "lora", "options": {"r": 4}}, SpecError, "made with other options"),
        ({"method": "peft:lora", "options": {"r": 4}}, SpecError, "peft_type was"),
        ({"init_from": "nowhere"}, AdapterFileError, "'nowhere'"),
    ],
    ids=str,
)
def test_adapter_that_does_not_fit_is_refused(request_, change, error, message):
    if "seed" in change.get("options", {}):
        request_ = replace(request_, method="tlora", options={"r": 4})
    run(request_)
    with pytest.raises(error, match=message):
        prepare(replace(request_, **{"init_from": str(request_.out), **change}))
