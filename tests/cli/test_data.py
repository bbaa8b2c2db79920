"""`rankfold data show` prints what a run with the same options would learn."""

import json

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.tiny_models import write_splits

_TICKETS = "id,subject,body,team\n" + "".join(
    f"{row},Subject number {row},Hello what about the film {row},{'ab'[row % 2]}\n" for row in range(40)
)


def show(*words):
    result = CliRunner().invoke(cli, ["data", "show", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def tickets(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text(_TICKETS + "0,Subject number 0,Hello what about the film 0,b\n")
    return path


def test_show_prints_files_columns_counts_lengths_and_what_is_odd(tickets):
    page = show("--data", tickets, "--label-column", "team")
    for words in (
        "train file",
        "classification, measured by accuracy",
        "subject,body",
        "not read",
        "median 9, longest 9 words",
        "Subject number 0\n  Hello what about the film 0\n  label: a",
        "1 texts of the split 'train' have different labels, such as 'a' in line 2",
    ):
        assert words in page
    assert any(line.split() == ["a", "18", "2"] for line in page.splitlines())


def test_show_gives_the_example_as_the_model_sees_it_and_what_is_cut(tickets, tiny_bert):
    words = ("--data", tickets, "--label-column", "team", "--model", tiny_bert, "--max-length", "5", "--json")
    preview = json.loads(show(*words))
    (segment,) = preview["example"]["segments"]
    assert segment["text"].startswith("[CLS]")
    assert segment["text"].endswith("[SEP]")
    lengths = preview["lengths"]["train"]
    assert (lengths["unit"], lengths["max_length"], lengths["cut"]) == ("tokens", 5, 1.0)
    assert lengths["lost"] == pytest.approx(1 - 5 / lengths["median"])
    assert preview["unused_columns"] == ["id"]
    assert sum(preview["labels"]["train"].values()) == preview["rows"]["train"]
    assert {"columns", "held_out", "conflicting_labels"} <= {item["name"] for item in preview["findings"]}


def test_show_marks_the_part_of_an_instruction_that_is_learned(tmp_path, tiny_llama):
    rows = [{"instruction": f"what about {row}", "output": f"the film {row}"} for row in range(12)]
    folder = write_splits(tmp_path / "rows", train=rows, validation=rows[:3])
    preview = json.loads(show("--data", folder, "--model", tiny_llama, "--json"))
    learned = [segment["is_learned"] for segment in preview["example"]["segments"]]
    assert learned == [False, True]
    assert preview["rows"] == {"train": 12, "validation": 3}
    assert any(item["name"] == "shared_rows" for item in preview["findings"])
    assert "«" in show("--data", folder, "--model", tiny_llama)
    assert "instruction" in show("--data", folder)  # no model is needed


def test_show_gives_the_range_of_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"a {row},{row}.5\n" for row in range(30)))
    preview = json.loads(show("--data", tmp_path / "a.csv", "--kind", "regression", "--json"))
    assert preview["numbers"]["train"][0] >= 0.5
    assert preview["labels"] == {}


def test_show_takes_a_folder_without_a_training_split(tmp_path, tiny_bert):
    (tmp_path / "validation.csv").write_text(
        "text,label\n" + "".join(f"a {row},{row % 2}\n" for row in range(9))
    )
    preview = json.loads(show("--data", tmp_path, "--model", tiny_bert, "--json"))
    assert preview["rows"] == {"validation": 9}


def test_show_explains_data_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b,c\n")
    result = CliRunner().invoke(cli, ["data", "show", "--data", str(tmp_path / "a.csv")])
    assert result.exit_code == 2
    assert "line 2 of" in result.stderr
