"""Tasks whose rows belong to people: reading, splits and errors with a column of groups."""

from dataclasses import replace

import pytest

from rankfold.bench.suites.suite_file import read_suite
from rankfold.errors import DataError
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns
from tests.support.tiny_models import review_rows, write_splits


def _talk_rows(speakers, *, seed=0):
    """Return four texts of each speaker, who are healthy or not as a whole."""
    rows = review_rows(4 * len(speakers), seed=seed)
    return [
        {"speaker": speaker, "words": row["sentence"], "label": number % 2}
        for number, speaker in enumerate(speakers)
        for row in rows[4 * number : 4 * number + 4]
    ]


def _names(first, last):
    return [f"s{number:02}" for number in range(first, last)]


def _load(folder, *, splits=("train", "validation"), column="speaker", **fields):
    request = TaskRequest(data=str(folder), columns=Columns(group=column), **fields)
    return load_task(request, is_causal=False, splits=splits)


def _places(data, split):
    return {row.id for row in data.examples.splits[split]}


def test_a_validation_split_is_cut_by_group_and_the_group_is_no_text(tmp_path):
    rows = _talk_rows(_names(0, 20))
    data = _load(write_splits(tmp_path / "d", train=rows))
    train_part, held_part = (
        {rows[place]["speaker"] for place in _places(data, split)} for split in ("train", "validation")
    )
    assert train_part | held_part == set(_names(0, 20))
    assert not train_part & held_part
    assert data.examples.splits["train"][0].text in {row["words"] for row in rows}


def test_a_cut_by_group_is_the_same_alone(tmp_path):
    folder = write_splits(tmp_path / "d", train=_talk_rows(_names(0, 20)))
    assert _places(_load(folder), "validation") == _places(
        _load(folder, splits=("validation",)), "validation"
    )


def test_holding_out_ignores_who_is_in_the_other_splits(tmp_path):
    rows = _talk_rows(_names(0, 20))
    folder = write_splits(tmp_path / "d", train=rows, validation=rows[:8])
    with pytest.raises(
        DataError, match="'s00', 's01' of 'speaker' are in the split 'train' and in 'validation'"
    ):
        _load(folder)
    assert len(_load(folder, holds_out=True).examples.splits["validation"]) == 8


def test_a_split_that_is_measured_alone_is_held_against_the_training_split(tmp_path):
    folder = write_splits(
        tmp_path / "d",
        train=_talk_rows(_names(0, 9)),
        validation=_talk_rows(_names(9, 12)),
        test=_talk_rows(_names(8, 12)),
    )
    assert len(_load(folder).examples.splits["validation"]) == 12
    with pytest.raises(DataError, match="'s08' of 'speaker' are in the split 'train' and in 'test'"):
        _load(folder, splits=("test",))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("person", "no column 'person'; name one that the data has: 'speaker', 'words', 'label'"),
        ("label", "'label' is read as text or label"),
    ],
)
def test_a_column_that_cannot_be_the_group_is_refused(tmp_path, column, words):
    with pytest.raises(DataError, match=words):
        _load(write_splits(tmp_path / "d", train=_talk_rows(_names(0, 9))), column=column)


def test_the_text_cannot_be_the_group(tmp_path):
    folder = write_splits(tmp_path / "d", train=_talk_rows(_names(0, 9)))
    request = TaskRequest(data=str(folder), columns=Columns(text="words", group="words"))
    with pytest.raises(DataError, match="'words' is read as text or label"):
        load_task(request, is_causal=False)


def test_an_answer_cannot_be_the_group(tmp_path):
    rows = [{"instruction": f"{i}", "output": f"{i % 2}", "user": i // 4} for i in range(40)]
    folder = write_splits(tmp_path / "d", train=rows)
    with pytest.raises(DataError, match="'output' is read as text or label"):
        load_task(TaskRequest(data=str(folder), columns=Columns(group="output")), is_causal=True)
    data = load_task(TaskRequest(data=str(folder), columns=Columns(group="user")), is_causal=True)
    assert len(data.examples.splits["validation"]) == 4


def test_a_split_without_the_column_is_refused_with_its_name(tmp_path):
    other = [{"words": "good", "label": 0}]
    folder = write_splits(tmp_path / "d", train=_talk_rows(_names(0, 9)), validation=other)
    with pytest.raises(DataError, match="the split 'validation' has no column 'speaker'"):
        _load(folder)


def test_a_speaker_on_both_sides_is_noticed_without_being_asked(tmp_path):
    folder = write_splits(tmp_path / "d", train=_talk_rows(_names(0, 9)))
    data = load_task(TaskRequest(data=str(folder), columns=Columns(text="words")), is_causal=False)
    assert any("--group-column speaker keeps them apart" in item.message for item in data.findings)


def test_a_run_and_its_evaluation_hold_out_the_same_people(tmp_path, tiny_bert):
    request = RunRequest(
        model=str(tiny_bert),
        method="lora",
        data=str(write_splits(tmp_path / "d", train=_talk_rows(_names(0, 20)))),
        group_column="speaker",
        out=tmp_path / "run",
        steps=2,
        max_length=16,
    )
    record = run(request)
    assert record.request.group_column == "speaker"
    asked = EvaluateRequest(adapter=request.out)  # the rest is in run.json
    again = evaluate(asked)
    assert again.predictions == record.predictions
    trained = replace(asked, split="train")
    assert evaluate(trained).rows == record.data.rows["train"] < 20 * len(_talk_rows(_names(0, 1)))


def test_a_suite_names_the_group_for_all_its_runs(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[base]\nmodel = "minilm"\ndata = "talks.csv"\ngroup_column = "speaker"\n'
        '[[methods]]\nname = "lora"\n'
    )
    requests = read_suite(str(tmp_path / "mine.toml")).requests(tmp_path / "runs")
    assert {request.task_request.columns.group for request in requests} == {"speaker"}
