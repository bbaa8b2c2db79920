"""`rankfold predict` and `rankfold chat`: texts, lines and files in, answers out, and refusals in words."""

import csv
import json
import shutil

import pytest
from click.testing import CliRunner

import rankfold
from rankfold.cli.main import cli
from rankfold.runs.predict import AnsweredRow
from tests.support.tiny_models import question_rows, review_rows, write_llama, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

_TEMPLATE = (
    "{% for m in messages %}{{ 'question : ' if m.role == 'user' else 'answer : ' }}{{ m.content }} [SEP]"
    "{% endfor %}{% if add_generation_prompt %}answer :{% endif %}"
)


def _call(*words, stdin=None):
    return CliRunner().invoke(cli, [str(word) for word in words], input=stdin)


def _train(folder, model, data, *words):
    result = _call(
        *("train", "--model", model, "--data", data, "--method", "lora", "--out", folder, "--steps", 6),
        *("--batch-size", 8, "--max-length", 32, "--learning-rate", 0.02, *words),
    )
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def classes(tiny_bert, tmp_path_factory):
    """A run with named classes."""
    folder = tmp_path_factory.mktemp("classes")
    names = ("bad", "good")
    rows = [{"text": row["sentence"], "label": names[row["label"]]} for row in review_rows(48)]
    return _train(folder / "run", tiny_bert, write_splits(folder / "data", train=rows, validation=rows[:8]))


def _open(rows):
    """The answers of a training that nobody can choose from, since all differ."""
    return [
        {**row, "output": f"{row['output']} {' '.join(row['instruction'].split()[: 1 + index % 6])}"}
        for index, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def open_answers(tiny_llama, tmp_path_factory):
    """A run of instructions with open answers, without a chat template."""
    folder = tmp_path_factory.mktemp("open")
    rows = _open(question_rows(48))
    return _train(folder / "run", tiny_llama, write_splits(folder / "data", train=rows, validation=rows[:8]))


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A run of conversations, whose model has a chat template."""
    folder = tmp_path_factory.mktemp("chats")
    model = write_llama(folder / "llama", chat_template=_TEMPLATE)
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in _open(question_rows(48))
    ]
    return _train(folder / "run", model, write_splits(folder / "data", train=rows, validation=rows[:8]))


def test_texts_and_lines_and_rows_get_the_same_answers_in_their_order(classes, tmp_path):
    texts = [row["sentence"] for row in review_rows(5, seed=3)]
    expected = rankfold.load(classes).predict(texts)
    options = [word for text in texts for word in ("--text", text)]
    by_text = _call("predict", classes, *options, "--json")
    by_line = _call("predict", classes, "--json", stdin="".join(f"{text}\n" for text in texts))
    objects = "".join(json.dumps({"id": f"r{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    by_row = _call("predict", classes, "--json", stdin=objects)
    for result in (by_text, by_line, by_row):
        assert result.exit_code == 0, result.stderr
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["text"] for row in rows] == texts
        assert [row["prediction"] for row in rows] == [answer["label"] for answer in expected]
    assert [json.loads(line)["id"] for line in by_row.stdout.splitlines()] == [f"r{i}" for i in range(5)]
    table = _call("predict", classes, *options).stdout
    assert all(text in table for text in (*texts, "probability"))


def test_lines_that_begin_with_a_brace_are_rows_or_refused(classes):
    marked = _call("predict", classes, "--json", stdin='\ufeff{"text": "a film"}\na film\n')
    assert marked.exit_code == 0, marked.stderr
    assert len({json.loads(line)["prediction"] for line in marked.stdout.splitlines()}) == 1
    assert [json.loads(line)["text"] for line in marked.stdout.splitlines()] == ["a film", "a film"]
    for line, fault in (
        ('{"text": "a film"', "no JSON (Expecting"),
        ("{name}, a film", "--text"),
        ('{"text": "a", "text": "b"}', "the key 'text' is there twice"),
    ):
        result = _call("predict", classes, "--json", stdin=f"a film\n{line}\n")
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert "line 2 of standard input" in result.stderr
        assert fault in " ".join(result.stderr.split())


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_other_encodings_and_delimiters_come_back_as_the_same_texts_in_utf_8(classes, tmp_path, encoding):
    rows = [["007", "Größe, süß", 'the film was "good"'], ["08", "1,50 €", "a poor film\nand music"]]
    with (tmp_path / "new.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=";").writerows([["number", "note", "text"], *rows])
    out = tmp_path / "out.csv"
    result = _call("predict", classes, "--data", tmp_path / "new.csv", "--out", out)
    assert result.exit_code == 0, result.stderr
    with out.open(encoding="utf-8", newline="") as file:
        written = list(csv.reader(file))
    assert [row[:3] for row in written] == [["number", "note", "text"], *rows]
    assert written[0][3:] == ["prediction", "probability", "probability: bad", "probability: good"]
    for row in written[1:]:
        shares = dict(zip(("bad", "good"), map(float, row[5:]), strict=True))
        assert row[3] == max(shares, key=shares.get)
        assert float(row[4]) == max(shares.values())
    # The answers are data again, and are answered anew in the same columns.
    again = _call("predict", classes, "--data", out, "--out", tmp_path / "again.csv")
    assert again.exit_code == 0, again.stderr
    assert "the answers replace 'prediction', 'probability', 'probability: bad'" in again.stderr
    assert "the answers replace" not in result.stderr
    assert (tmp_path / "again.csv").read_text("utf-8") == out.read_text("utf-8")


def test_a_generated_answer_is_printed_as_text(open_answers):
    words = ("predict", open_answers, "--text", "question : the film ?", "--max-new-tokens", 6)
    answer = rankfold.load(open_answers).predict("question : the film ?", max_new_tokens=6)[0]["text"]
    shown = _call(*words)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.split() == answer.split()
    sampled = [_call(*words, "--temperature", 3, "--seed", seed).stdout for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_chat_takes_piped_lines_and_remembers_them_by_the_chat_template(chats):
    one = "question : the film ?"
    user, model = {"role": "user", "content": one}, rankfold.load(chats)
    remembered = 0
    for seed in range(5):
        sampling = {"max_new_tokens": 6, "temperature": 2.0, "seed": seed}
        words = ("chat", chats, "--max-new-tokens", 6, "--temperature", 2, "--seed", seed)
        result = _call(*words, stdin=f"{one}\n\n{one}\n/reset\n{one}\n/exit\nunread\n")
        assert result.exit_code == 0, result.stderr
        first, second, third = result.stdout.splitlines()
        turns = [user, {"role": "assistant", "content": first.strip()}, user]
        replies = [
            model.predict([{"messages": messages}], **sampling)[0]["text"] for messages in ([user], turns)
        ]
        assert [reply.split() for reply in replies] == [first.split(), second.split()]
        assert first == third
        assert "begins anew" in result.stderr
        assert "answered alone" not in result.stderr
        remembered += first != second
    assert remembered  # some second answer shows that the first turn was read


def test_chat_without_a_template_answers_each_line_alone(open_answers):
    one = "question : the film ?"
    result = _call("chat", open_answers, "--max-new-tokens", 4, stdin=f"{one}\n{one}\n")
    first, second = result.stdout.splitlines()
    assert first == second
    assert "each line is answered alone" in result.stderr


def test_an_adapter_of_another_program_says_less_and_is_asked_for_the_rest(classes, tiny_bert, tmp_path):
    adapter = shutil.copytree(classes, tmp_path / "adapter")
    for name in ("run.json", "rankfold.json"):
        (adapter / name).unlink()
    expected = rankfold.load(classes).predict("the film was good")[0]["probabilities"]
    for words in ((), ("--model", tiny_bert)):
        bare = _call("predict", adapter, "--text", "the film was good", "--json", "--max-length", 32, *words)
        assert bare.exit_code == 0, bare.stderr
        found = json.loads(bare.stdout)["probabilities"]
        assert list(found) == ["LABEL_0", "LABEL_1"]
        assert list(found.values()) == pytest.approx(list(expected.values()))
    named = _call("predict", adapter, "--text", "a", "--labels", "bad, good", "--json")
    assert set(json.loads(named.stdout)["probabilities"]) == {"bad", "good"}
    wrong = _call("predict", adapter, "--text", "a", "--labels", "a,b,c")
    assert (wrong.exit_code, "2 outputs, not 3 classes" in wrong.stderr) == (2, True)
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    lost = _call("predict", adapter, "--text", "a")
    assert (lost.exit_code, "--model" in lost.stderr) == (2, True)


def test_a_base_model_that_is_gone_or_another_is_refused(classes, tmp_path):
    moved = shutil.copytree(classes, tmp_path / "moved")
    manifest = json.loads((moved / "rankfold.json").read_text("utf-8"))
    manifest["base"]["name"] = str(tmp_path / "gone")
    (moved / "rankfold.json").write_text(json.dumps(manifest))
    gone = _call("predict", moved, "--text", "a")
    assert (gone.exit_code, "which is not found here" in gone.stderr, "--model" in gone.stderr) == (
        2,
        True,
        True,
    )
    other = write_llama(tmp_path / "llama")
    assert _call("predict", classes, "--text", "a", "--model", other).exit_code == 2


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--text", "a", "--data", "b.csv"), "give one of them"),
        (("--text", "a", "--pair", "b"), "single texts were learned"),
        (("--text", "a", "--pair", "b", "--pair", "c"), "--pair is given 2 times for 1"),
        (("--text", "a", "--out", "a.txt"), "name a file that ends in .jsonl or .csv"),
        (("--text", "a", "--overwrite"), "leave it out"),
        (("--text", "a", "--json", "--out", "a.csv"), "give one of them"),
        (("--text", "a", "--temperature", "-1"), "temperature is -1"),
        (("--text", "a", "--top-p", "0"), "top_p is 0"),
        (("--text", "a", "--kind", "regression"), "leave it out"),
        (("--text", "a", "--labels", "a,b"), "its own class names"),
        (("--data", "absent.csv"), "absent.csv"),
        (("--text", "a", "--split", "test"), "--split is given without --data"),
        (("--text", "a", "--temperature", "0.5"), "do not depend on 'temperature'; leave it out"),
    ],
)
def test_what_cannot_be_is_refused_in_words(classes, words, fault):
    result = _call("predict", classes, *words)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert fault in result.stderr
    assert "Traceback" not in result.stderr


def test_a_row_without_its_text_is_named_and_nothing_is_written(classes, tmp_path):
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.csv"
    data.write_text('{"text": "a film"}\n{"text": null}\n', "utf-8")
    result = _call("predict", classes, "--data", data, "--out", out)
    assert (result.exit_code, "row 2" in result.stderr) == (2, True)
    assert not out.exists()
    assert _call("chat", classes, stdin="a\n").exit_code == 2  # it holds no conversation


def test_unknown_fields_of_a_configuration_are_refused_unless_they_may_be_left_out(classes, tmp_path):
    adapter = shutil.copytree(classes, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "from_the_future": 1}))
    with pytest.raises(rankfold.AdapterFileError, match="from_the_future"):
        rankfold.load(adapter)
    with pytest.warns(rankfold.RankfoldWarning, match="from_the_future"):
        model = rankfold.load(adapter, strict=False)
    assert model.predict("a film") == rankfold.load(classes).predict("a film")


@pytest.mark.parametrize("item", [None, 3, b"text", ("a", None), ("a", "b", "c"), []], ids=repr)
def test_input_that_is_no_text_is_named_with_its_number(item, classes):
    with pytest.raises(rankfold.DataError, match=r"input 2 is .*give a text"):
        rankfold.load(classes).predict(["a film", item])


def test_rows_without_text_are_answered_with_a_warning_and_missing_texts_refused(classes, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"text": "a film"}\n{"text": " "}\n{"text": ""}\n')
    result = _call("predict", classes, "--data", tmp_path / "new.jsonl", "--json")
    assert len(result.stdout.splitlines()) == 3
    assert "there is no text in rows 2, 3" in result.stderr
    for value in (None, float("nan")):
        with pytest.raises(ValueError, match="row 2: the column 'text' holds"):
            rankfold.load(classes).predict([{"text": "a film"}, {"text": value}])


@pytest.mark.parametrize("name", ["choice", "unit", "generated"])
def test_columns_of_the_user_are_never_replaced_by_details_of_an_answer(name):
    row = AnsweredRow({"text": "a", name: "mine", "tokens": ["a"]}, {"text": "b", name: 1, "tokens": ["a"]})
    values = {"text": "a", name: "mine", "tokens": ["a"], "prediction": "b", f"prediction: {name}": 1}
    assert row.values() == values
    assert AnsweredRow(values, row.answer).values() == values


def test_another_chat_template_is_used_and_named(chats, open_answers):
    learned = rankfold.load(chats).learner.chat_template.source
    assert learned == _TEMPLATE
    assert rankfold.load(chats, chat_template="alpaca").learner.chat_template.source != learned
    result = _call("chat", chats, "--chat-template", "alpaca", "--max-new-tokens", 2, stdin="a film\n")
    assert "written by the chat template 'alpaca'" in result.stderr
    named = _call("predict", chats, "--chat-template", "alpac", "--text", "a")
    assert (named.exit_code, "alpaca" in named.stderr) == (2, True)


def test_chat_template_of_a_kind_without_conversations_is_refused(classes):
    result = _call("predict", classes, "--chat-template", "chatml", "--text", "a film")
    assert "a chat template is of no use to the kind classification" in result.stderr


def test_merged_export_is_named_as_a_model(tiny_bert):
    for command in ("predict", "evaluate"):
        result = _call(command, tiny_bert, *(("--text", "a") if command == "predict" else ()))
        assert result.exit_code == 2
        assert "is a whole model, such as a merged export, and no adapter" in result.stderr
