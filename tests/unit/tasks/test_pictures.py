"""Columns of pictures are refused by models of texts, in every form in which data has them."""

import json

import pytest
from PIL import Image

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns, find_columns

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
FORMS = [
    PNG,
    {"bytes": PNG, "path": None},
    {"bytes": None, "path": "a.jpg"},
    "photos/one.JPEG",
    ["a.png", "b.png"],
    Image.new("RGB", (2, 2)),
]
ROWS = [
    {"text": "some words", "label": "a"},
    {"instruction": "what is it ?", "output": "a bat"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    {"question": "which ?", "choices": ["a", "b"], "answer": 0},
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row)))
@pytest.mark.parametrize("picture", FORMS, ids=lambda value: type(value).__name__ + str(value)[:12])
def test_pictures_are_refused_with_the_remedy(row, picture):
    rows = [{**row, "photo": picture}, {**row, "photo": None}]
    with pytest.raises(DataError, match=r"the column 'photo' holds pictures.*--text-column"):
        find_columns(rows, Columns())
    assert find_columns([{**row, "photo": "a photo.jpg of me"}], Columns()) is not None


def test_the_text_alone_is_learned_where_it_is_named(tmp_path):
    rows = [{"text": f"some words {i}", "label": "ab"[i % 2], "photo": f"{i}.png"} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="20 of 20 pictures cannot be read"):
        load_task(TaskRequest(data=str(tmp_path / "a.jsonl")), is_causal=False)
    data = load_task(TaskRequest(data=str(tmp_path / "a.jsonl"), columns=Columns("text")), is_causal=False)
    assert any("not read: 'photo'" in finding.message for finding in data.findings)
