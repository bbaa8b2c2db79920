"""Families of models beside LLaVA answer questions about pictures: trained, saved, loaded, asked again."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

import rankfold
from rankfold.cli.main import cli
from tests.support.picture_models import save_answering

WORDS = ("what", "is", "it", "?", "red", "blue")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Questions about pictures of two colours and several shapes."""
    folder = tmp_path_factory.mktemp("questions")
    for split, count in (("train", 8), ("validation", 4)):
        rows = []
        for number in range(count):
            name = ("red", "blue")[number % 2]
            Image.new("RGB", (18 + 7 * number, 20), name).save(folder / f"{split}{number}.png")
            rows.append({"image": f"{split}{number}.png", "question": "what is it ?", "answer": name})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


# transformers hands Pillow's pictures to numpy in the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("family", ["idefics3", "smolvlm", "paligemma", "blip_2"])
def test_family_learns_and_answers(family, questions, tmp_path):
    model = save_answering(tmp_path / "model", family, WORDS)
    words = ("--model", model, "--data", questions, "--method", "lora", "--steps", 2, "--batch-size", 4)
    result = CliRunner().invoke(cli, [*map(str, ("train", *words, "--out", tmp_path / "run"))])
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    rows = [json.loads(line) for line in (questions / "validation.jsonl").read_text().splitlines()]
    asked = [{**row, "image": str(questions / row["image"])} for row in rows]
    loaded = rankfold.load(tmp_path / "run")
    answers = [answer["text"] for answer in loaded.predict(asked)]
    right = sum(answer == row["answer"] for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) == metrics["accuracy"]
    # Pictures of a batch do not reach the answers to others.
    assert answers == [loaded.predict([row])[0]["text"] for row in asked]
