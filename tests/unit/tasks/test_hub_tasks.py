"""Named tasks from the hub: rows are read in the layout that the authors published."""

import datasets
import pytest

from rankfold.errors import DataError
from rankfold.tasks import NAMED_TASKS, TaskRequest, load_task
from rankfold.tasks.data.read import Table
from rankfold.tasks.embedded import EMBEDDED_TASKS
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.registry import as_choices
from tests.support.tiny_models import write_splits

COMMONSENSE = {
    "boolq": ({"question": "is it", "answer": True, "passage": "It is."}, ("false", "true"), 1),
    "arc_easy": (
        {
            "id": "a1",
            "question": "Which?",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
        ("x", "y", "z"),
        2,
    ),
    "openbookqa": (
        {
            "id": "o1",
            "question_stem": "Which",
            "choices": {"text": ["x", "y"], "label": ["A", "B"]},
            "answerKey": "A",
        },
        ("x", "y"),
        0,
    ),
    "piqa": ({"goal": "To do", "sol1": "so", "sol2": "or so", "label": 1}, ("so", "or so"), 1),
    "social_i_qa": (
        {
            "context": "Ann ran.",
            "question": "Who?",
            "answerA": "Ann",
            "answerB": "Bob",
            "answerC": "I",
            "label": "2",
        },
        ("Ann", "Bob", "I"),
        1,
    ),
    "winogrande": (
        {"sentence": "_ ran.", "option1": "Ann", "option2": "Bob", "answer": "2"},
        ("Ann", "Bob"),
        1,
    ),
    "hellaswag": (
        {"activity_label": "Run", "ctx": "She", "endings": ["a", "b", "c", "d"], "label": "3"},
        ("a", "b", "c", "d"),
        3,
    ),
}
COMMONSENSE["arc_challenge"] = COMMONSENSE["arc_easy"]


class Hub:
    """A stand-in for the hub: it serves `splits`, and records the requests."""

    def __init__(self):
        self.splits, self.asked, self.read_file = {}, [], datasets.load_dataset

    def has(self, **splits):
        self.splits.update(splits)

    def load_dataset(self, repository, config=None, *, split, **options):
        if "data_files" in options:  # a file
            return self.read_file(repository, split=split, **options)
        self.asked.append((repository, config, split))
        return self.splits[split]

    def get_dataset_split_names(self, repository, config):
        return list(self.splits)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    for name in ("load_dataset", "get_dataset_split_names"):
        monkeypatch.setattr(datasets, name, getattr(hub, name))
    monkeypatch.delenv("RANKFOLD_DATA", raising=False)
    return hub


def _glue(task, labels, count=8):
    """Return rows as GLUE has them on the hub."""
    pair = {"cola": 1, "sst2": 1}.get(task, 2)
    names = NAMED_TASKS[task].label_names
    features = {
        f"sentence{number + 1}" if pair > 1 else "sentence": datasets.Value("string")
        for number in range(pair)
    }
    rows = [
        {**dict.fromkeys(features, f"text {place}"), "label": labels[place % len(labels)], "idx": place}
        for place in range(count)
    ]
    features["label"] = datasets.Value("float32") if names is None else datasets.ClassLabel(names=list(names))
    features["idx"] = datasets.Value("int32")
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def _load(task, *, splits=("train", "validation"), is_causal=False):
    return load_task(TaskRequest(task=task), is_causal=is_causal, splits=splits)


@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "rte", "wnli", "mnli"])
def test_a_task_without_folder_is_asked_of_the_hub(hub, task):
    matched = "validation_matched" if task == "mnli" else "validation"
    hub.has(**{"train": _glue(task, [0, 1]), matched: _glue(task, [1, 0], 4)})
    data = _load(task)
    assert hub.asked == [("nyu-mll/glue", task, "train"), ("nyu-mll/glue", task, matched)]
    assert (data.kind, data.source) == (CLASSIFICATION, f"nyu-mll/glue:{task}")
    assert data.examples.label_names == NAMED_TASKS[task].label_names
    assert [row.id for row in data.examples.splits["validation"]] == [0, 1, 2, 3]


def test_the_second_validation_split_of_mnli_is_its_own(hub):
    hub.has(
        train=_glue("mnli", [0, 1, 2]),
        validation_matched=_glue("mnli", [0], 2),
        validation_mismatched=_glue("mnli", [1], 3),
    )
    rows = _load("mnli", splits=("train", "validation", "validation_mismatched")).examples.splits
    assert [len(items) for items in rows.values()] == [8, 2, 3]


@pytest.mark.parametrize(("task", "labels"), [("mrpc", [0, 1]), ("stsb", [0.5, 3.0, 4.8])])
def test_labels_that_are_kept_back_are_an_error_and_no_class(hub, task, labels):
    hub.has(train=_glue(task, labels), test=_glue(task, [-1]))
    with pytest.raises(DataError, match="the labels of the split 'test' are kept back: all are -1"):
        _load(task, splits=("train", "test"))


@pytest.mark.parametrize("task", sorted(COMMONSENSE))
def test_published_questions_become_questions_with_choices(hub, task):
    row, choices, answer = COMMONSENSE[task]
    hub.has(train=datasets.Dataset.from_list([row] * 3), validation=datasets.Dataset.from_list([row]))
    (item,) = _load(task, is_causal=True).examples.splits["validation"]
    assert item.candidates.index(item.answer) == answer
    assert len(item.candidates) == len(choices)
    if task != "boolq":
        assert all(choice in item.prompt for choice in choices)
        assert item.answer == f"the correct answer is {NAMED_TASKS[task].choice_word}{answer + 1}"
    assert str(row.get("context", "")) in item.prompt


@pytest.mark.parametrize(
    ("task", "hidden"),
    [("piqa", {"label": -1}), ("winogrande", {"answer": ""}), ("hellaswag", {"label": ""})],
)
def test_answers_that_are_kept_back_are_an_error(hub, task, hidden):
    row, *_ = COMMONSENSE[task]
    hub.has(
        train=datasets.Dataset.from_list([row]), test=datasets.Dataset.from_list([row, {**row, **hidden}])
    )
    with pytest.raises(DataError, match="row 2 has no answer: they are kept back in this split"):
        _load(task, is_causal=True, splits=("train", "test"))


@pytest.mark.parametrize(
    ("task", "other", "message"),
    [
        ("arc_easy", {"choices": ["x", "y", "z"]}, r"'choices' holds '\['x', .* lists 'text' and 'label'"),
        ("arc_easy", {"choices": {"text": ["x"]}}, "'choices' holds .* lists 'text' and 'label' is needed"),
        ("piqa", {"label": None}, "'label' holds 'None' where the number of a choice is needed"),
        ("piqa", {"label": 0.5}, "'label' holds '0.5' where the number of a choice is needed"),
        ("winogrande", {"answer": "A"}, "'answer' holds 'A' where the number of a choice is needed"),
        ("social_i_qa", {"label": "A"}, "'label' holds 'A' where the number of a choice is needed"),
        ("hellaswag", {"endings": "['a', 'b']"}, "'endings' holds '.*' where a list of texts is needed"),
        ("boolq", {"answer": None}, "'answer' holds 'None' where true or false is needed"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_rows_that_are_not_as_published_are_named_with_what_is_expected(task, other, message, place):
    row, *_ = COMMONSENSE[task]
    rows = [row, row]
    rows[place] = {**row, **other}
    with pytest.raises(DataError, match=rf"row {place + 1}: the column {message}"):
        as_choices(Table(rows))


@pytest.mark.parametrize("label", [1, 1.0, "1"], ids=repr)
def test_number_of_a_choice_is_read_however_it_is_written(label):
    row, *_ = COMMONSENSE["piqa"]
    assert as_choices(Table([{**row, "label": label}])).rows[0]["answer"] == 1


@pytest.mark.parametrize("name", sorted(set(NAMED_TASKS) - set(EMBEDDED_TASKS)))
def test_without_folder_and_network_the_remedy_is_both(name, monkeypatch):
    monkeypatch.delenv("RANKFOLD_DATA", raising=False)
    with pytest.raises(
        DataError, match=rf"'{NAMED_TASKS[name].hub}' and the hub did not give it .*'{name}' with --data-root"
    ):
        _load(name)


def test_a_folder_goes_before_the_hub(hub, tmp_path):
    rows = [{"sentence1": "a", "sentence2": f"b {index}", "label": index % 2} for index in range(20)]
    write_splits(tmp_path / "mrpc", train=rows)
    data = load_task(TaskRequest(task="mrpc", data_root=str(tmp_path)), is_causal=False)
    assert (data.source, hub.asked) == (str(tmp_path / "mrpc"), [])


def test_a_root_that_holds_splits_itself_is_refused_before_the_hub_is_asked(hub, tmp_path):
    write_splits(tmp_path / "mrpc", train=[{"sentence1": "a", "sentence2": "b", "label": 1}])
    with pytest.raises(DataError, match="holds splits itself; name the folder above it"):
        load_task(TaskRequest(task="mrpc", data_root=str(tmp_path / "mrpc")), is_causal=False)
    assert hub.asked == []


def test_a_root_without_the_folder_is_said_before_the_hub_is_asked(hub, tmp_path, caplog):
    hub.has(train=_glue("mrpc", [0, 1]), validation=_glue("mrpc", [0, 1]))
    with caplog.at_level("INFO", logger="rankfold"):
        load_task(TaskRequest(task="mrpc", data_root=str(tmp_path)), is_causal=False)
    assert f"there is no folder '{tmp_path / 'mrpc'}'; asking the hub for 'nyu-mll/glue:mrpc'" in caplog.text
