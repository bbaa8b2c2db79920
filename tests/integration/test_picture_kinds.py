"""Kinds of tasks with pictures: trained, killed, resumed, evaluated, compared, stored and exported."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import rankfold
from rankfold.cli.main import cli
from rankfold.runs.request import RunRequest
from tests.architecture.sources import ROOT
from tests.integration.test_resume import content
from tests.support.killing import train_and_kill
from tests.support.picture_models import save_encoder, save_llava

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


def call(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, result.stderr
    return result


def paint(path, name, seed):
    noise = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    color = tuple(value + noise.randint(-30, 30) for value in COLORS[name])
    Image.new("RGB", (18, 20), color).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of class folders, for two splits."""
    folder = tmp_path_factory.mktemp("photos")
    for split, first, count in (("train", 0, 16), ("val", 100, 6)):
        for offset, name in enumerate(COLORS):
            for number in range(count):
                seed = first + 1000 * offset + number
                paint(folder / split / name / f"a {number}.png", name, seed)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny image encoder, whose files have a head of another size."""
    return save_encoder(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def request_(photos, encoder, tmp_path_factory):
    return RunRequest(
        model=str(encoder),
        method="lora",
        data=str(photos),
        out=tmp_path_factory.mktemp("runs") / "whole",
        options={"dropout": 0.1, "target_modules": "all-linear"},
        steps=30,
        batch_size=8,
        learning_rate=3e-3,
        checkpoint_every=10,
        eval_every=15,
        threads=1,
    )


@pytest.fixture(scope="module")
def trained(request_):
    call(*request_.command()[1:])
    return request_.out


def test_classifier_learns_and_is_measured_again(trained, photos):
    record = json.loads((trained / "run.json").read_text())
    assert record["task"]["kind"] == "image_classification"
    assert record["metrics"]["accuracy"] > record["baselines"]["majority"] + 0.3
    assert record["parameters"]["head"] > 0
    evaluated = json.loads(call("evaluate", trained, "--json").stdout)
    assert evaluated["metrics"] == record["metrics"]


def test_killed_training_ends_with_the_same_bytes(trained, request_, tmp_path):
    killed = replace(request_, out=tmp_path / "killed")
    assert train_and_kill(killed, after_events=15, then_wait=0.01)
    path = Path(request_.data) / "val" / "red" / "a 0.png"
    picture = path.read_bytes()
    paint(path, "blue", 7)  # under the same name
    assert "data" in call("train", "--resume", "--out", killed.out, code=2).stderr
    path.write_bytes(picture)
    call("train", "--resume", "--out", killed.out)
    assert content(killed.out) == content(trained)


def test_pictures_of_every_form_are_answered_alike(trained, photos, tmp_path):
    model = rankfold.load(trained)
    path = photos / "val" / "red" / "a 0.png"
    forms = [str(path), {"image": path.read_bytes()}, {"image": Image.open(path)}, {"image": path}]
    answers = model.predict(forms)
    assert all(answer == answers[0] for answer in answers)
    call("predict", trained, "--data", photos / "val", "--out", tmp_path / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 18
    assert next(line for line in lines if line["image"] == "red/a 0.png")["prediction"] == answers[0]["label"]


def test_run_is_stored_exported_reported_and_compared(trained, request_, tmp_path):
    call("store", "put", tmp_path / "s.db", "a", trained)
    assert rankfold.load(f"{tmp_path / 's.db'}#a").predict([{"image": Image.new("RGB", (9, 9))}])
    assert "exact" in call("export", trained, tmp_path / "lora", "--to", "lora").output
    call("report", trained, "--out", tmp_path / "report.html")
    words = ("--model", request_.model, "--data", request_.data, "--seeds", 0, "--steps", 5)
    call(
        "compare",
        *words,
        "--out",
        tmp_path / "c",
        "--batch-size",
        8,
        "--method",
        "lora r=2",
        "--method",
        "tlora r=2",
    )


def test_data_of_pictures_is_shown_and_faults_are_named(photos, encoder, tmp_path):
    shown = call("data", "show", "--data", photos, "--model", encoder)
    assert "image_classification" in shown.stdout
    assert "picture from 'image', label from 'label'" in shown.output
    refused = call(
        *("train", "--data", photos, "--method", "lora"),
        *("--model", "minilm", "--out", tmp_path / "a"),
        code=2,
    )
    assert "the column 'image' holds pictures" in refused.stderr
    (tmp_path / "b.csv").write_text("path,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(40)))
    refused = call(
        *("train", "--data", tmp_path / "b.csv", "--method", "lora", "--out", tmp_path / "a"),
        *("--model", encoder),
        code=2,
    )
    assert "40 of 40 pictures cannot be read: the picture '" in refused.stderr


# Questions about pictures.


WORDS = ("what", "color", "is", "the", "shape", "?", "it", "yes", "no", *COLORS, "<image>")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"), WORDS)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Questions about colors, of which some are answered with yes or no."""
    folder = tmp_path_factory.mktemp("questions")
    for split, first, count in (("train", 0, 24), ("validation", 100, 8)):
        rows = []
        for offset, name in enumerate(COLORS):
            for number in range(count):
                path = f"pictures/{split}{name}{number}.png"
                paint(folder / path, name, first + 1000 * offset + number)
                rows.append({"image": path, "question": "what color is the shape ?", "answer": name})
                if number % 4 == 0:
                    answer = "yes" if name == "red" else "no"
                    rows.append({"image": path, "question": "is it red ?", "answer": answer})
        random.Random(0).shuffle(rows)
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def answering_request(questions, llava, tmp_path_factory):
    return RunRequest(
        model=str(llava),
        method="lora",
        data=str(questions),
        out=tmp_path_factory.mktemp("answering") / "whole",
        options={"r": 4},
        steps=60,
        batch_size=8,
        learning_rate=2e-2,
        checkpoint_every=20,
        eval_every=30,
        threads=1,
    )


@pytest.fixture(scope="module")
def answering(answering_request):
    call(*answering_request.command()[1:])
    return answering_request.out


def test_questions_are_answered_better_than_by_a_model_that_sees_gray(answering, questions):
    record = json.loads((answering / "run.json").read_text())
    assert record["task"]["kind"] == "image_text"
    metrics = record["metrics"]
    assert metrics["accuracy"] > metrics["accuracy_blind"] + 0.2
    assert metrics["accuracy_other"] > metrics["accuracy_other_blind"] + 0.2
    assert 0 <= metrics["accuracy_yes_no"] <= 1
    evaluated = json.loads(call("evaluate", answering, "--json").stdout)
    assert evaluated["metrics"] == metrics
    model = rankfold.load(answering)
    rows = [json.loads(line) for line in (questions / "validation.jsonl").read_text().splitlines()]
    texts = [
        answer["text"]
        for answer in model.predict([{**row, "image": str(questions / row["image"])} for row in rows])
    ]
    assert (
        sum(text == row["answer"] for text, row in zip(texts, rows, strict=True)) / len(rows)
        == metrics["accuracy"]
    )
    asked = call("predict", answering, "--text", rows[0]["question"], "--pair", questions / rows[0]["image"])
    assert texts[0] in asked.stdout


def test_killed_training_on_questions_ends_with_the_same_bytes(answering, answering_request, tmp_path):
    killed = replace(answering_request, out=tmp_path / "killed")
    assert train_and_kill(killed, after_events=30, then_wait=0.01)
    call("train", "--resume", "--out", killed.out)
    assert content(killed.out) == content(answering)


def test_answering_adapter_is_exported_as_plain_lora(answering, tmp_path):
    assert "exact" in call("export", answering, tmp_path / "lora", "--to", "lora").output


def test_model_of_texts_is_refused_with_the_column(questions, tmp_path):
    words = ("train", "--data", questions, "--method", "lora", "--out", tmp_path / "a", "--model", "minilm")
    assert "the column 'image' holds pictures" in call(*words, code=2).stderr


def test_commands_of_the_page_run_on_a_folder_of_pictures(photos, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos, target_is_directory=True)
    block = re.search(
        r"^```sh\n(.*?)^```", (ROOT / "docs" / "pictures.md").read_text(), re.MULTILINE | re.DOTALL
    )
    for line in block[1].splitlines():
        call(*line.replace("google/vit-base-patch16-224-in21k", str(encoder)).split()[1:])
    assert (tmp_path / "runs" / "photos.html").is_file()
