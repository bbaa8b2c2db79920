"""A run: repeatable, complete or not there, and its adapter is what was measured."""

import csv
import json
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file

from rankfold.errors import DataError, OutputExistsError, SpecError, TrainingError
from rankfold.presets import discover, recommend
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from rankfold.runs.examples import read_examples
from rankfold.runs.prepare import prepare
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import dry_run, run
from tests.support.tiny_models import question_rows, write_splits

METHODS = [*sorted(discover()), "peft:lora", "peft:vera"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def questions_request(request_, tiny_llama, questions):
    return replace(request_, model=str(tiny_llama), data=str(questions))


def _method(request_, method):
    fitting = {"relayed_lora": {"r": 4, "k": 2}, "peft:vera": {"r": 4}}.get(method, {"r": 2})
    return replace(request_, method=method, options=fitting)


def _without_times(record):
    return replace(
        record, created="", request=None, seconds=None, peak_memory_bytes=0, hardware=None, bytes=None
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_measures_the_same_again_from_its_folder(request_, method):
    request_ = _method(request_, method)
    record = run(request_)
    again = evaluate(
        EvaluateRequest(
            adapter=request_.out,
            model=request_.model,
            data=request_.data,
            batch_size=request_.batch_size,
            max_length=request_.max_length,
        )
    )
    assert again.metrics == record.metrics
    assert again.predictions == record.predictions
    assert again.loss == record.curve.validation[-1]["loss"]
    assert record.parameters.trainable > 0


@pytest.mark.parametrize("method", ["lora", "peft:lora"])
def test_a_run_repeats_bit_for_bit(request_, tmp_path, method):
    first, second = (replace(_method(request_, method), out=tmp_path / name) for name in "ab")
    records = run(first), run(second)
    assert _without_times(records[0]) == _without_times(records[1])
    weights = [load_file(each.out / "adapter_model.safetensors") for each in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_measuring_at_the_end_alone_is_the_same_run_with_one_point_less(request_, tmp_path):
    whole = run(request_)
    short = replace(request_, validate="end", out=tmp_path / "short")
    record = run(short)
    assert record.curve.validation == whole.curve.validation[-1:]
    assert len(whole.curve.validation) > 1
    assert (record.predictions, record.metrics) == (whole.predictions, whole.metrics)
    weights = [load_file(each.out / "adapter_model.safetensors") for each in (request_, short)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert run(replace(request_, validate="end", resume=True)) == whole


def test_another_seed_gives_another_run(request_, tmp_path):
    one, other = (run(replace(request_, seed=seed, out=tmp_path / str(seed))) for seed in (0, 1))
    assert one.curve != other.curve


def test_the_folder_is_a_peft_adapter_with_record_and_curve(request_):
    record = run(request_)
    names = {path.name for path in request_.out.iterdir()}
    adapter_files = {"adapter_config.json", "adapter_model.safetensors", "rankfold.json"}
    assert names == adapter_files | {"run.json", "curve.csv", "examples.jsonl"}
    assert peft.PeftConfig.from_pretrained(str(request_.out)).task_type == "SEQ_CLS"
    assert RunRecord.read(request_.out) == record
    assert [path.name for path in request_.out.parent.iterdir()] == ["run"]


def test_the_record_counts_numbers_and_bytes_as_the_file_has_them(request_):
    record = run(request_)
    tensors = load_file(request_.out / "adapter_model.safetensors")
    assert record.bytes.learned == sum(tensor.nbytes for tensor in tensors.values())
    assert record.bytes.learned == 4 * (record.parameters.stored + record.parameters.head)
    assert record.bytes.weights_file == (request_.out / "adapter_model.safetensors").stat().st_size
    assert record.parameters.head == 2 * 16 + 2


def test_the_record_has_a_prediction_for_each_row_and_they_give_the_metric(request_):
    record = run(request_)
    hits = [each.label == each.prediction for each in record.predictions]
    assert len(hits) == record.data.rows["validation"] == 16
    assert record.metrics["accuracy"] == sum(hits) / 16
    assert record.baselines == {"majority": 0.5}


def test_the_worst_mistakes_are_kept_with_their_texts_unless_they_shall_not_be(request_, tmp_path):
    record = run(request_)
    wrong = {item.id for item in record.predictions if item.label != item.prediction}
    kept = read_examples(request_.out)
    assert wrong
    assert {item.id for item in kept} == wrong
    losses = [item.loss for item in kept]
    assert losses == sorted(losses, reverse=True)
    assert all(item.texts["text"] and item.label != item.prediction for item in kept)
    again = run(replace(request_, out=tmp_path / "private", keep_texts=False))
    assert not (tmp_path / "private" / "examples.jsonl").exists()
    assert (again.metrics, again.predictions) == (record.metrics, record.predictions)


def test_the_curve_file_has_the_points_of_the_record(request_):
    record = run(request_)
    rows = list(csv.DictReader((request_.out / "curve.csv").read_text("utf-8").splitlines()))
    for split, points in (("train", record.curve.train), ("validation", record.curve.validation)):
        found = [(float(row["step"]), float(row["loss"])) for row in rows if row["split"] == split]
        assert found == [(point["step"], point["loss"]) for point in points]


def test_a_regression_is_measured_against_the_mean(request_, tmp_path):
    rows = [
        json.dumps({"text": word * 2, "label": index / 3}) for index, word in enumerate(["good ", "bad "] * 8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    record = run(replace(request_, data=str(tmp_path / "rows.jsonl")))
    assert (record.task.kind, record.task.metric) == ("regression", "pearson")
    assert record.baselines == {"mean": 0.0}
    assert all(isinstance(each.prediction, float) for each in record.predictions)


def test_instructions_are_learned_and_answered(questions_request):
    request_ = replace(questions_request, steps=60, learning_rate=5e-2)
    record = run(request_)
    losses = [point["loss"] for point in record.curve.validation]
    assert losses[-1] < 0.5 * losses[0]
    assert list(record.metrics) == ["accuracy", "answer_loss"]
    assert record.baselines == {"majority": 0.5}
    assert record.training.head == "none"


def _asked(choices, *, answer=0):
    return {"instruction": "which ?", "output": choices[answer], "choices": list(choices), "answer": answer}


def test_choices_that_training_knows_nothing_of_have_no_baseline(questions_request, tmp_path):
    ends = ("a", "was", "the", "film")
    words = [f"{one} {end}" for one in ("good", "bad", "film", "story") for end in ends]
    open_ones = [{"instruction": "which ?", "output": each} for each in words]
    data = write_splits(tmp_path / "data", train=open_ones, validation=[_asked(["true", "false"])] * 4)
    record = run(replace(questions_request, data=str(data)))
    assert record.baselines == {}
    assert record.metrics["accuracy"] in {0.0, 1.0}


def test_choice_too_long_to_be_measured_is_refused_before_the_training(questions_request, tmp_path):
    asked = [_asked(["true", "false " * 40])]
    data = write_splits(tmp_path / "data", train=question_rows(16), validation=asked)
    request_ = replace(questions_request, data=str(data), max_length=32)
    with pytest.raises(DataError, match=r"the answer of '0' has 41 tokens.*above 41"):
        run(request_)
    assert not list(request_.out.parent.glob("run*"))


def test_a_frozen_head_stays_as_the_seed_drew_it_and_is_saved(request_, tmp_path):
    frozen = replace(request_, freeze_head=True)
    records = run(frozen), run(replace(frozen, out=tmp_path / "longer", steps=9))
    heads = [
        load_file(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
        for folder in (frozen.out, tmp_path / "longer")
    ]
    assert torch.equal(heads[0], heads[1])
    assert records[0].training.head == "frozen"
    assert records[0].parameters.head == 2 * 16 + 2


def test_a_rehearsal_counts_what_the_run_has_and_writes_nothing(request_):
    plan = dry_run(request_)
    assert not request_.out.exists()
    record = run(request_)
    assert (plan.parameters, plan.training, plan.data) == (record.parameters, record.training, record.data)


def test_limits_choose_the_same_rows_for_every_seed(request_, tmp_path):
    limited = replace(request_, train_rows=24, eval_rows=5)
    records = [run(replace(limited, seed=seed, out=tmp_path / str(seed))) for seed in (0, 1)]
    ids = [[each.id for each in record.predictions] for record in records]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 5
    assert records[0].data.rows == {"train": 24, "validation": 5}


def test_the_preset_s_learning_rate_is_used_when_none_is_given(request_):
    for method in ("tlora", "peft:lora"):
        request = replace(_method(request_, method), learning_rate=None)
        rate = dry_run(request).training.learning_rate
        assert rate == recommend(method, options=request.options).learning_rate


def test_epochs_become_steps(request_):
    assert dry_run(replace(request_, steps=None, epochs=2)).training.steps == 2 * 48 // 8
    assert dry_run(replace(request_, steps=None)).training.epochs == 3


def test_an_existing_folder_is_refused_before_anything_is_read(request_):
    request_.out.mkdir()
    (request_.out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        run(replace(request_, model="nothing like a model"))


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(request_, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file" / "run", tmp_path / "file" / "new" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(SpecError, match=r"cannot write .* choose another folder"):
            run(replace(request_, out=out, model="nothing like a model"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_overwriting_replaces_a_run_but_never_a_folder_that_is_none(request_):
    run(request_)
    (request_.out / "left over").touch()
    record = run(replace(request_, seed=3, overwrite=True))
    assert RunRecord.read(request_.out) == record
    assert not (request_.out / "left over").exists()

    other = replace(request_, out=request_.out.parent / "home", overwrite=True)
    other.out.mkdir()
    (other.out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="holds no run"):
        run(other)
    assert (other.out / "thesis.txt").read_text() == "years of work"


def test_a_failed_run_leaves_an_earlier_one_untouched(request_):
    run(request_)
    before = {path.name: path.read_bytes() for path in request_.out.iterdir()}
    with pytest.raises(TrainingError, match="--learning-rate"):
        run(replace(request_, learning_rate=1e9, overwrite=True))
    assert {path.name: path.read_bytes() for path in request_.out.iterdir()} == before
    assert [path.name for path in request_.out.parent.iterdir()] == ["run"]


def test_a_failed_run_leaves_a_record_that_says_why(request_):
    with pytest.raises(TrainingError):
        run(replace(request_, learning_rate=1e9))
    record = RunRecord.read(request_.out)
    assert record.status == "failed"
    assert "TrainingError: the loss is nan" in record.error
    assert [path.name for path in request_.out.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "lroa"}, "Did you mean 'lora'"),
        ({"method": "peft:loraa"}, "Did you mean 'peft:lora'"),
        ({"options": {"rr": 2}}, "option 'rr' of method 'lora'"),
        ({"method": "peft:lora", "options": {"rank": 2}}, "option 'rank' of method 'peft:lora'"),
        ({"method": "peft:lora", "options": {"r": -1}}, "'?r'?"),
        ({"options": {"target_modules": ["nowhere"]}}, "nowhere"),
        ({"method": "peft:lora", "options": {"target_modules": ["nowhere"]}}, "nowhere"),
        ({"max_length": 65}, "takes 64 tokens"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"model": "nowhere/at/all"}, "there is no model at 'nowhere/at/all'"),
    ],
)
def test_a_run_that_cannot_be_built_says_why_and_leaves_nothing(request_, change, words):
    with pytest.raises(SpecError, match=words):
        run(replace(request_, **change))
    assert not request_.out.exists()


def test_minilm_learns_bbc_news_beyond_the_majority(tmp_path):
    record = run(
        RunRequest(
            model="minilm",
            method="lora",
            task="bbc_news",
            out=tmp_path / "run",
            steps=12,
            batch_size=8,
            max_length=32,
            train_rows=96,
            eval_rows=40,
            learning_rate=1e-2,
        )
    )
    losses = [point["loss"] for point in record.curve.validation]
    assert record.metrics["accuracy"] > record.baselines["majority"]
    assert losses[-1] < losses[0]
    assert (record.parameters.stored, record.parameters.head) == (73728, 384 * 5 + 5)


@pytest.mark.parametrize("option", [{}, {"class_weights": "balanced"}, {"sampling": "balanced"}], ids=str)
def test_imbalance_is_not_remarked_on_where_the_request_deals_with_it(option, tiny_bert, tmp_path):
    rows = [{"text": f"film {index}", "label": "yes" if index % 50 else "no"} for index in range(100)]
    write_splits(tmp_path / "data", train=rows, validation=rows)
    request = RunRequest(
        model=str(tiny_bert), data=str(tmp_path / "data"), method="lora", out=tmp_path / "run", **option
    )
    names = {finding.name for finding in prepare(request).findings}
    assert ("imbalanced_classes" in names) is not bool(option)
