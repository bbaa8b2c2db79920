"""Rounded numbers: what a run trains with is what it stores, and what everybody reads."""

from dataclasses import replace

import peft
import pytest
import torch
from transformers import AutoModel

import rankfold
from rankfold.errors import AdapterFileError, OutputExistsError, SpecError
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from rankfold.runs.request import RunRequest
from rankfold.runs.rounding import Measurement, active_adapter, verify_rounding
from rankfold.runs.run import STORED_NAME, run
from rankfold.store.rounding import GRIDS, restore, round_adapter
from rankfold.store.saved import open_stored
from rankfold.store.tensors import bytes_of
from rankfold.train.store_bits import StoreBits
from tests.support.killing import StopAt
from tests.support.stored import adapter_of, make_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

HEAD = {"modules_to_save": ["pooler"]}
VARIANTS = {
    "tlora": {"store_bits": 4, "gradient_accumulation": 2},
    "relayed_lora": {"store_bits": 3, "options": {"r": 4, "k": 2, **HEAD}},
    "effilora": {"store_bits": 2, "reducer": {"active_fraction": 0.5, "interval": 2, "start_step": 2}},
    "peft:lora": {"store_bits": 8, "save_best": "accuracy", "eval_every": 1},
    "peft:ia3": {"store_bits": 4, "options": {"feedforward_modules": []}},
    "peft:vera": {"store_bits": 4, "options": {"r": 8}, "early_stopping": 1, "eval_every": 1},
    "peft:loha": {"store_bits": 3},
    "peft:adalora": {"store_bits": 4, "options": {"init_r": 4, "target_r": 2, "total_step": 9}},
    "peft:oft": {"store_bits": 2, "options": {"oft_block_size": 4, "r": 0}},
}


@pytest.fixture
def variant(request_):
    """Return a function that gives the request of a variant."""
    usual = {"tlora": {"r": 2}, "effilora": {"r": 2}, "peft:lora": {"r": 2}, "peft:loha": {"r": 2}}

    def make(method, **changes):
        options = usual.get(method, {})
        changes = {"options": options, "method": method, "steps": 9, **VARIANTS[method], **changes}
        return replace(request_, **changes)

    return make


def numbers(adapter):
    return {name: bytes_of(tensor) for name, tensor in adapter.tensors.items()}


@pytest.mark.parametrize("method", VARIANTS)
def test_packing_a_run_at_its_bits_changes_no_number_and_everybody_reads_the_same(variant, method):
    """Also where the best evaluation, or an early end, was before the rounding began."""
    request = variant(method)
    record = run(request)
    saved, file = rankfold.open_adapter(request.out), request.out / STORED_NAME
    dtype = f"int{request.store_bits}"
    assert numbers(restore(round_adapter(saved, dtype))) == numbers(saved)
    assert numbers(rankfold.open_adapter(file)) == numbers(saved)
    stored = record.stored[dtype]
    assert stored.score == record.metrics[record.task.metric]
    assert stored.file == file.stat().st_size
    assert stored.bytes < record.bytes.learned
    certificate = open_stored(file).certificate
    assert certificate.dtype == dtype
    assert certificate.largest < 1e-12
    assert certificate.score.exact == certificate.score.rounded == stored.score
    again = evaluate(EvaluateRequest(adapter=file, data=request.data, split="validation", batch_size=8))
    assert again.metrics == record.metrics


@pytest.mark.parametrize("method", ["tlora", "effilora"])
def test_stopped_run_ends_with_the_same_bytes(variant, method, tmp_path):
    """Stopped before, and after, the rounding began."""
    whole = variant(method, out=tmp_path / "whole")
    run(whole)
    for step in (5, 7, 8):
        stopped = variant(method, out=tmp_path / f"{step}", checkpoint_every=1)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, progress=StopAt(step))
        run(replace(stopped, resume=True))
        assert numbers(rankfold.open_adapter(stopped.out)) == numbers(rankfold.open_adapter(whole.out))


def test_rounding_in_training_changes_the_last_third_alone(variant, tmp_path):
    curves = [
        run(variant("tlora", store_bits=bits, out=tmp_path / f"{bits}")).curve.train for bits in (None, 2)
    ]
    losses = [[point["loss"] for point in curve] for curve in curves]
    assert losses[0][:6] == losses[1][:6]
    assert losses[0][6] != losses[1][6]


def test_run_is_scored_with_the_numbers_that_it_stores(variant):
    request = variant("peft:lora", store_bits=None, store="int2", save_best=None)
    record = run(request)
    file = request.out / STORED_NAME
    assert numbers(rankfold.open_adapter(request.out)) != numbers(rankfold.open_adapter(file))
    again = evaluate(EvaluateRequest(adapter=file, data=request.data, split="validation", batch_size=8))
    assert again.metrics[record.task.metric] == record.stored["int2"].score
    model = rankfold.load(file)
    assert len(model.predict(["a good one", "a bad one"])) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store_bits": 5}, "store_bits is 5; give 8, 4, 3 or 2"),
        ({"store_bits": 4, "store": "int8"}, "store is 'int8', and store_bits 4"),
        ({"store_bits": 1}, "store_bits is 1; give a whole number from 2, up to 8"),
    ],
)
def test_wrong_bits_are_refused(request_, changes, message):
    with pytest.raises(SpecError, match=message):
        replace(request_, **changes)


def test_method_that_saves_other_tensors_than_it_trains_is_refused(tiny_bert, monkeypatch):
    model = peft.get_peft_model(
        AutoModel.from_pretrained(tiny_bert), peft.LoraConfig(r=2, target_modules=["query"])
    )
    tensors = {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(model).items()}
    monkeypatch.setattr(peft, "get_peft_model_state_dict", lambda _model: tensors)
    with pytest.raises(SpecError, match="is computed when the adapter is saved"):
        StoreBits(model, 4, steps=9)


@pytest.mark.parametrize("dtype", GRIDS)
def test_certificate_is_the_change_of_the_outputs_and_measured_again(variant, dtype, tmp_path):
    request = variant("peft:lora", store_bits=None, save_best=None)
    run(request)
    packed = rankfold.pack_adapter(request.out, tmp_path / "file", dtype=dtype, data=request.data)
    certificate = packed.certificate
    assert certificate.measure == "outputs"
    assert 0 < certificate.mean <= certificate.largest < {"int8": 0.05, "int4": 0.5}.get(dtype, 2)
    assert (certificate.score.name, certificate.score.rows) == ("accuracy", 16)
    assert open_stored(tmp_path / "file").certificate == certificate
    how = Measurement(data=request.data)
    assert {check.state for check in verify_rounding(request.out, tmp_path / "file", how)} == {"ok"}
    other = replace(certificate, largest=certificate.largest * 1.1)
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        store.put("a", request.out, dtype=dtype, certificate=other)
    states = [check.state for check in verify_rounding(request.out, f"{tmp_path / 'store.db'}#a", how)]
    assert states == ["ok", "differs", "ok"]


def test_certificate_without_the_base_is_the_change_of_each_update(tmp_path):
    """By a product of the matrices here; of methods whose update takes the base, that of each tensor."""
    numbers_alone = rankfold.pack_adapter(
        make_adapter(size=64), tmp_path / "vectors", dtype="int4"
    ).certificate
    assert (numbers_alone.measure, numbers_alone.count) == ("numbers", 4)
    assert "not at hand" in numbers_alone.reason
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 32, generator=draw), torch.randn(64, 4, generator=draw)
    exact = adapter_of({"x.q.lora_A.weight": down, "x.q.lora_B.weight": up})
    certificate = rankfold.pack_adapter(exact, tmp_path / "lora", dtype="int4").certificate
    opened = rankfold.open_adapter(tmp_path / "lora").tensors
    change = (opened["x.q.lora_B.weight"] @ opened["x.q.lora_A.weight"] - up @ down).norm() / (
        up @ down
    ).norm()
    assert (certificate.measure, certificate.worst) == ("updates", "x.q")
    assert certificate.largest == pytest.approx(change.item(), rel=1e-5)


def test_model_is_saved_rounded(tiny_bert, tmp_path):
    config = peft.LoHaConfig(r=4, target_modules=["query", "value"], init_weights=False)
    model = peft.get_peft_model(AutoModel.from_pretrained(tiny_bert), config)
    packed = rankfold.save(model, tmp_path / "file", dtype="int4")
    assert packed.certificate.measure == "outputs"
    exact, opened = active_adapter(model), rankfold.open_adapter(tmp_path / "file")
    assert numbers(opened) == numbers(restore(round_adapter(exact, "int4")))
    with pytest.raises(OutputExistsError):
        rankfold.save(model, tmp_path / "file")
    rankfold.save(model, tmp_path / "exact")
    with pytest.raises(AdapterFileError, match="no certificate"):
        verify_rounding(tmp_path / "exact", tmp_path / "exact", Measurement())


def test_request_of_a_run_repeats_it():
    request = RunRequest(model="minilm", method="lora", task="bbc_news", out="x", store="int4", store_bits=4)
    assert request.stored_type == "int4"
    assert "--store-bits 4" in " ".join(request.command())
