"""The lm-evaluation-harness on a saved adapter gives its own figures, and agrees with our likelihoods."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import lm_eval.tasks
import peft
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

import rankfold
from rankfold.errors import AdapterFileError, DataError, SpecError
from rankfold.models.base import resolve_model
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from rankfold.runs.harness import HarnessRequest, evaluate_with_harness
from rankfold.store.loading import load_adapter
from rankfold.tasks.kinds import default_kind
from tests.support.tiny_models import question_rows, review_rows, write_splits

ANSWER_TOKENS = 4  # three words and the end of text

# The prompt that rankfold makes of a question: it begins with [CLS], and its answers end with [SEP].
CHOICE = """
output_type: multiple_choice
doc_to_text: "[CLS] question : {{sentence}} ?"
doc_to_choice: ["answer is false [SEP]", "answer is true [SEP]"]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
PERPLEXITY = """
output_type: loglikelihood
doc_to_text: "[CLS] question : {{sentence}} ?"
doc_to_target: "{{['answer is false', 'answer is true'][label]}} [SEP]"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
"""


@pytest.fixture(scope="module")
def definitions(tmp_path_factory):
    """A folder with two tasks on 16 reviews."""
    folder = tmp_path_factory.mktemp("definitions")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in review_rows(16, seed=1)))
    for name, content in {"choose_review": CHOICE, "write_review": PERPLEXITY}.items():
        data = {"train": str(rows), "test": str(rows)}
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {json.dumps(data)}}}\n"
            f"fewshot_split: train\ntest_split: test\nmetadata: {{version: 2.5}}\n{content}"
        )
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """An adapter that starts at random, saved by PEFT."""
    base = default_kind(is_causal=True).load(resolve_model(str(tiny_llama))).model
    config = rankfold.config(
        "relayed_lora", r=4, k=2, seed=3, target_modules="mlp", init_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(base, config).save_pretrained(folder := tmp_path_factory.mktemp("saved") / "adapter")
    return folder


@pytest.fixture
def request_(adapter, tiny_llama, definitions):
    return HarnessRequest(
        adapter=adapter, model=str(tiny_llama), tasks=("choose_review",), include=(definitions,), device="cpu"
    )


@pytest.fixture
def own_tasks_only(monkeypatch):
    """Leave the harness's thousands of tasks out, which take many seconds to list."""
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda *, include_path, include_defaults: manager(include_path=include_path, include_defaults=False),
    )


def test_harness_agrees_with_our_own_likelihoods(request_, tiny_llama, tmp_path):
    data = write_splits(tmp_path, train=question_rows(32), validation=question_rows(16, seed=1))
    ours = evaluate(
        EvaluateRequest(
            adapter=request_.adapter,
            model=str(tiny_llama),
            data=str(data),
            max_length=32,
            scoring="total_likelihood",
            device="cpu",
        )
    )
    result = evaluate_with_harness(replace(request_, tasks=("choose_review", "write_review")))
    accuracy, perplexity = result.metrics
    assert (accuracy.task, accuracy.metric, perplexity.metric) == ("choose_review", "acc", "perplexity")
    assert accuracy.value == ours.metrics["accuracy"]
    assert 0 < accuracy.value < 1
    assert perplexity.value == pytest.approx(math.exp(ANSWER_TOKENS * ours.metrics["answer_loss"]), rel=1e-5)


@pytest.mark.parametrize("num_fewshot", [None, 2])
def test_harness_gives_what_it_gives_without_us(request_, tiny_llama, definitions, monkeypatch, num_fewshot):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # it asks every package manager
    loaded = default_kind(is_causal=True).load(resolve_model(str(tiny_llama)))
    expected = simple_evaluate(
        HFLM(
            pretrained=load_adapter(loaded.model, request_.adapter), tokenizer=loaded.processor, batch_size=5
        ),
        tasks=["choose_review"],
        limit=9,
        num_fewshot=num_fewshot,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(definitions), include_defaults=False),
    )["results"]["choose_review"]
    result = evaluate_with_harness(replace(request_, limit=9, num_fewshot=num_fewshot))
    (metric,) = result.metrics
    assert metric.value == expected["acc,none"]
    assert metric.stderr == expected["acc_stderr,none"] > 0
    assert (metric.version, metric.num_fewshot, metric.higher_is_better) == ("2.5", num_fewshot or 0, True)
    assert result.output["n-samples"]["choose_review"] == {"original": 16, "effective": 9}


def test_yaml_file_is_a_task(request_, definitions, tmp_path):
    result = evaluate_with_harness(
        replace(request_, tasks=(str(definitions / "choose_review.yaml"),), include=(), limit=2)
    )
    result.write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert content["adapter"] == str(request_.adapter)
    assert content["results"]["choose_review"]["acc,none"] == result.metrics[0].value


def test_unknown_task_is_named_with_the_nearest_one(request_, own_tasks_only):
    with pytest.raises(SpecError, match=r"unknown task 'chose_review' .* Did you mean 'choose_review'\?"):
        evaluate_with_harness(replace(request_, tasks=("chose_review",)))


def test_task_whose_data_is_not_there_is_named(request_, tmp_path):
    file = tmp_path / "lost.yaml"
    file.write_text(
        f"task: lost\ndataset_path: json\ndataset_kwargs: {{data_files: {tmp_path}/none.jsonl}}\n{CHOICE}"
    )
    with pytest.raises(DataError, match=r"cannot load definition or data of '.*lost.yaml' \("):
        evaluate_with_harness(replace(request_, tasks=(str(file),), include=()))


def test_model_that_is_not_causal_is_refused(request_, tiny_bert):
    with pytest.raises(SpecError, match="is not a causal language model, which --harness needs"):
        evaluate_with_harness(replace(request_, model=str(tiny_bert)))


def test_adapter_of_a_classifier_is_refused(request_, tmp_path):
    folder = tmp_path / "classifier"
    folder.mkdir()
    for file in Path(request_.adapter).iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b'"CAUSAL_LM"', b'"SEQ_CLS"'))
    with pytest.raises(AdapterFileError, match="is for SEQ_CLS, but --harness evaluates only causal"):
        evaluate_with_harness(replace(request_, adapter=folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "no task of the harness is named"),
        ({"limit": 0}, "limit is 0; give a whole number above 0"),
        ({"num_fewshot": -1}, "num_fewshot is -1; give a whole number from 0"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number above 0"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"precision": "fp23"}, "unknown precision 'fp23'. Did you mean 'fp32'"),
    ],
)
def test_impossible_values_are_refused(request_, options, message):
    with pytest.raises(SpecError, match=message):
        replace(request_, **options)


def test_missing_package_is_named_with_its_extra(request_, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(SpecError, match=r"needs the package 'lm_eval'; .*rankfold\[harness\]"):
        evaluate_with_harness(request_)
