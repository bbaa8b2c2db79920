"""Rows about pictures in the layouts that data has become the same turns, pictures and answers."""

import base64
import io
import json

import pytest
from PIL import Image

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task

FILE = "a.png"


@pytest.fixture
def load(tmp_path):
    Image.new("RGB", (3, 3), "red").save(tmp_path / FILE)

    def load(row, rows=4):
        (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * rows))
        return load_task(TaskRequest(data=str(tmp_path / "rows.jsonl")), is_causal=False, splits=("train",))

    return load


def _inline():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PARTS = [{"type": "image"}, {"type": "text", "text": "what is it ?"}]
MESSAGES = [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "a bat"}]
LAYOUTS = [
    {"image": FILE, "question": "what is it ?", "answer": "a bat"},
    {"image": [FILE], "question": "what is it ?", "answers": ["a bat", "a cat", "a bat"]},
    {"photo": FILE, "instruction": "<image> what is it ?", "output": "a bat"},
    {"images": [FILE], "messages": MESSAGES},
    {
        "image": FILE,
        "conversations": [
            {"from": "human", "value": "<image>\nwhat is it ?"},
            {"from": "gpt", "value": "a bat"},
        ],
    },
    {"messages": [{"role": "user", "content": [{"type": "image", "image": FILE}, PARTS[1]]}, MESSAGES[1]]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": _inline()}}, PARTS[1]]},
            MESSAGES[1],
        ]
    },
]


@pytest.mark.parametrize("row", LAYOUTS, ids=map(str, range(len(LAYOUTS))))
def test_every_layout_has_the_same_turns(load, row):
    data = load(row)
    assert data.kind.name == "image_text"
    item = data.examples.splits["train"][0]
    assert item.answer == "a bat"
    (turn,) = item.turns
    assert turn.parts == (None, "what is it ?")
    assert [picture.read().getpixel((0, 0)) for picture in item.pictures] == [(255, 0, 0)]


def test_captions_have_a_question_of_their_own(load):
    item = load({"image": FILE, "caption": "a bat"}).examples.splits["train"][0]
    assert item.turns[0].parts == (None, "Describe the picture.")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": FILE, "question": "<image> or <image> ?", "answer": "a"}, "2 times '<image>' for 1"),
        ({"image": FILE, "question": "which ?", "answer": ""}, "no answer"),
        ({"images": [FILE, FILE], "messages": MESSAGES}, "2 pictures for 1 places"),
        (
            {"image": FILE, "messages": [{"role": "user", "content": "<image> what ?"}]},
            "the answer is missing",
        ),
        ({"image": FILE, "messages": [{"role": "x", "content": "a"}]}, "message 1 is of the role 'x'"),
    ],
)
def test_rows_that_make_no_question_are_named(load, row, words):
    with pytest.raises(DataError, match=words) as caught:
        load(row)
    assert "line 1 of" in str(caught.value)
