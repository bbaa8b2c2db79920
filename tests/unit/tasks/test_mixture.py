"""Mixtures: several tasks that are learned at once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from rankfold.errors import DataError, SpecError
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.tasks import TaskRequest, limit_rows, load_task
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.mixture import mix
from tests.support.tiny_models import question_rows, review_rows, write_splits

SIZES = {"few": 40, "many": 100, "most": 161}
MIXTURE = "few+many+most"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a folder for each of three tasks, and one of another kind."""
    folder = tmp_path_factory.mktemp("root")
    for seed, (name, rows) in enumerate(SIZES.items()):
        labels = [{**row, "label": row["label"] + seed} for row in review_rows(rows, seed=seed)]
        write_splits(folder / name, train=labels, validation=labels[: 10 + seed])
    for name in ("asked", "told"):
        write_splits(folder / name, train=question_rows(20), validation=question_rows(6, seed=1))
    numbers = [{"text": f"text {index}", "label": index / 3} for index in range(12)]
    write_splits(folder / "scored", train=numbers, validation=numbers)
    return folder


def _load(root, task, **more):
    return load_task(TaskRequest(task=task, data_root=str(root)), is_causal=False, **more)


def _tasks(rows):
    return Counter(row.id.partition(":")[0] for row in rows)


def test_every_task_trains_with_as_many_rows_as_the_smallest_and_is_measured_on_all(root):
    rows = _load(root, MIXTURE).examples.splits
    assert _tasks(rows["train"]) == dict.fromkeys(SIZES, SIZES["few"])
    assert _tasks(rows["validation"]) == {"few": 10, "many": 11, "most": 12}


def test_every_task_trains_with_all_its_rows_where_that_is_asked(root):
    request = TaskRequest(task=MIXTURE, data_root=str(root), mixture="all")
    rows = load_task(request, is_causal=False).examples.splits
    assert _tasks(rows["train"]) == SIZES


def test_way_to_mix_that_there_is_not_is_refused():
    with pytest.raises(SpecError, match="unknown mixture 'evn'"):
        RunRequest(model="minilm", method="lora", task=MIXTURE, mixture="evn", out=Path("out"))


def test_classes_are_named_after_their_task_and_keep_their_rows(root):
    mixture = _load(root, MIXTURE)
    names = mixture.task.label_names
    assert len(names) == len(set(names)) == 6
    for name in SIZES:
        alone = _load(root, name)
        expected = [
            (f"{name}:{row.id}", row.text, f"{name}:{alone.task.label_names[row.label]}")
            for row in alone.examples.splits["validation"]
        ]
        mixed = mixture.examples.splits["validation"]
        assert expected == [
            (row.id, row.text, names[row.label]) for row in mixed if row.id.startswith(f"{name}:")
        ]


def test_a_limit_is_shared_by_the_tasks(root):
    data = limit_rows(_load(root, MIXTURE), {"train": 20, "validation": None})
    assert _tasks(data.examples.splits["train"]) == dict.fromkeys(SIZES, 6)
    assert len(data.examples.splits["validation"]) == 33


def test_a_limit_below_the_number_of_tasks_is_refused(root):
    with pytest.raises(SpecError, match="2 rows are too few for the 3 tasks"):
        limit_rows(_load(root, MIXTURE), {"train": 2})


def test_the_hash_depends_on_every_task(root, tmp_path):
    for name in ("few", "many"):
        rows = review_rows(30)
        write_splits(tmp_path / name, train=rows, validation=rows[:9])
    before = _load(tmp_path, "few+many").sha256
    assert before == _load(tmp_path, "few+many").sha256
    write_splits(tmp_path / "many", train=review_rows(30, seed=3), validation=rows[:9])
    assert before != _load(tmp_path, "few+many").sha256


def test_a_mixture_has_a_new_version_when_one_of_its_tasks_has(root):
    few, many = (_load(root, name) for name in ("few", "many"))
    raised = replace(many, task=replace(many.task, version=2))
    assert [mix(parts).task.version for parts in ([few, many], [few, raised], [raised, few])] == [1, 2, 2]


def test_instructions_are_mixed_as_they_are(root):
    request = TaskRequest(task="asked+told", data_root=str(root))
    data = load_task(request, is_causal=True)
    assert (data.kind, data.task.metrics[0], data.task.label_names) == (INSTRUCTION, "accuracy", None)
    assert _tasks(data.examples.splits["validation"]) == {"asked": 6, "told": 6}


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        ("few+few", SpecError, "'few' is in the mixture 'few\\+few' twice"),
        ("few+scored", SpecError, "'few' is of kind classification, 'scored' is of kind regression"),
        ("scored+few", SpecError, "cannot be learned together"),
        ("few+nothing", SpecError, "unknown task 'nothing'"),
        ("few+", SpecError, "'few\\+' has a task without a name"),
        ("few+mrpc", DataError, "mrpc"),
    ],
)
def test_what_cannot_be_mixed_is_named(root, task, error, words):
    with pytest.raises(error, match=words):
        _load(root, task)


def test_a_mixture_is_not_read_from_one_place(root):
    request = TaskRequest(task=MIXTURE, data=str(root / "few"))
    with pytest.raises(SpecError, match="--data-root"):
        load_task(request, is_causal=False)


def test_a_run_on_a_mixture_measures_each_task_and_again_from_its_folder(root, tiny_bert, tmp_path):
    request = RunRequest(
        model=str(tiny_bert),
        method="lora",
        task=MIXTURE,
        data_root=str(root),
        out=tmp_path / "run",
        steps=3,
        max_length=16,
    )
    record = run(request)
    by_task = {
        name: mean(row.label == row.prediction for row in record.predictions if row.id.startswith(f"{name}:"))
        for name in SIZES
    }
    assert {name: record.metrics[f"{name}:accuracy"] for name in SIZES} == pytest.approx(by_task)
    # The trivial model knows the task, not the row: half of each task's rows are of its commonest class.
    assert record.baselines["majority"] == pytest.approx(16 / 33, abs=0.05)
    again = evaluate(
        EvaluateRequest(
            adapter=request.out,
            model=str(tiny_bert),
            task=request.task,
            data_root=request.data_root,
            max_length=16,
        )
    )
    assert again.metrics == pytest.approx(record.metrics)
    for name in SIZES:
        part = evaluate(EvaluateRequest(adapter=request.out, task=name, data_root=str(root), max_length=16))
        assert part.metrics["accuracy"] == pytest.approx(by_task[name])
