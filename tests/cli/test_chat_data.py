"""Chat data from the file to the answer, by the commands."""

import json

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from rankfold.runs.record import RunRecord
from rankfold.store.saved import open_adapter
from rankfold.tasks.kinds.chat_template import CHAT_TEMPLATES
from tests.support.tiny_models import BAD, GOOD, write_llama

TEMPLATE = "{% for m in messages %}{{ ('[SEP] question : ' if m['role'] == 'user' else ' answer : ') + m['content'] + ' [SEP]' }}{% endfor %}{% if add_generation_prompt %} answer :{% endif %}"  # noqa: E501


def _call(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, result.stderr
    return result


@pytest.fixture
def chats(tmp_path):
    """Conversations of two questions; every answer repeats the judging word of its question."""
    path = tmp_path / "chats.jsonl"
    rows = []
    for number in range(60):
        words = [(*GOOD, *BAD)[(number + step) % 6] for step in (0, 2)]
        digits = " ".join("123"[number // 3**power % 3] for power in range(4))
        turns = [
            turn
            for word in words
            for turn in (
                {"role": "user", "content": f"the {word} film {digits}"},
                {"role": "assistant", "content": f"{word} {digits}"},
            )
        ]
        rows.append({"id": f"c{number}", "messages": turns, "source": "web"})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _train(model, chats, out, *words):
    options = "--method lora --set target_modules=all-linear --steps 6 --batch-size 4 --learning-rate 1e-2"
    return _call(
        "train", "--model", model, "--data", chats, *options.split(), "--max-length", 60, "--out", out, *words
    )


def test_conversations_are_learned_packed_or_not_measured_and_answered(tmp_path, chats):
    model = write_llama(tmp_path / "llama", chat_template=TEMPLATE)
    _train(model, chats, tmp_path / "plain")
    printed = _train(model, chats, tmp_path / "packed", "--packing").stderr
    assert "columns read: 'messages'; not read: 'id', 'source'" in printed
    assert "packed 54 texts into" in printed
    plain, packed = (RunRecord.read(tmp_path / name) for name in ("plain", "packed"))
    for record in (plain, packed):
        assert record.task.settings["chat_template"] == TEMPLATE
        assert record.metrics["answer_loss"] < record.baselines["untrained"]
    # Before the training both measure the same rows in the same way.
    assert plain.baselines == packed.baselines
    assert packed.request.packing
    evaluated = json.loads(_call("evaluate", tmp_path / "packed", "--json").stdout)
    assert evaluated["metrics"]["answer_loss"] == pytest.approx(packed.metrics["answer_loss"], rel=1e-5)
    assert open_adapter(tmp_path / "packed").manifest.task.settings["chat_template"] == TEMPLATE
    answers = tmp_path / "answers.jsonl"
    _call("predict", tmp_path / "packed", "--data", chats, "--out", answers)
    assert len(answers.read_text().splitlines()) == 60


def test_a_model_without_template_takes_a_named_one(tmp_path, chats, tiny_llama):
    words = ["train", "--model", tiny_llama, "--data", chats, "--method", "lora", "--out", tmp_path / "a"]
    result = _call(*words, code=2)
    assert "--chat-template: chatml, alpaca, vicuna, or a Jinja file" in result.stderr
    _train(tiny_llama, chats, tmp_path / "b", "--chat-template", "alpaca")
    record = RunRecord.read(tmp_path / "b")
    assert record.request.chat_template == "alpaca"
    assert record.task.settings["chat_template"] == CHAT_TEMPLATES["alpaca"]
    evaluated = json.loads(_call("evaluate", tmp_path / "b", "--json").stdout)
    assert evaluated["metrics"]["answer_loss"] == pytest.approx(record.metrics["answer_loss"], rel=1e-5)


def test_packing_is_refused_where_nothing_is_written(tmp_path, tiny_bert, reviews):
    words = ["train", "--model", tiny_bert, "--data", reviews, "--method", "lora", "--out", tmp_path / "a"]
    result = _call(*words, "--packing", code=2)
    assert "packing is for kinds that learn to write text, not for classification" in result.stderr


def test_texts_are_compared_where_somebody_asks(tmp_path, chats):
    model = write_llama(tmp_path / "llama", chat_template=TEMPLATE)
    _train(model, chats, tmp_path / "run", "--metric", "rouge_l,exact_match")
    record = RunRecord.read(tmp_path / "run")
    assert record.task.metric == "rouge_l"
    assert {"rouge_l", "exact_match", "answer_loss"} <= record.metrics.keys()
    assert all(isinstance(item.prediction, str) for item in record.predictions)
    evaluated = json.loads(_call("evaluate", tmp_path / "run", "--json").stdout)
    assert evaluated["metrics"]["rouge_l"] == record.metrics["rouge_l"]
