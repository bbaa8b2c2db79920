"""`rankfold train`: options reach the run, output is data, errors are one line."""

import json

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def train(tiny_bert, reviews, tmp_path):
    """Return a function that calls `rankfold train` on the tiny model and returns the result."""

    def call(*more, model=tiny_bert, data=reviews, method="lora", out=tmp_path / "run"):
        words = ["train", "--model", model, "--data", data, "--method", method, "--out", out]
        words += ["--steps", 3, "--batch-size", 8, "--max-length", 32, *more]
        return CliRunner().invoke(cli, [str(word) for word in words])

    return call


def command_of(record):
    """Return the words that repeat the run of a record, without the program's name."""
    return RunRequest(**record["request"]).command()[1:]


def test_train_prints_a_table_and_writes_the_run(train, tmp_path):
    result = train("--set", "r=2", "--learning-rate", "0.01", "--seed", "7")
    assert result.exit_code == 0, result.stderr
    for word in (
        "accuracy",
        "majority",
        "trainable parameters",
        "weights file",
        "seconds",
        str(tmp_path / "run"),
    ):
        assert word in result.stdout
    record = RunRecord.read(tmp_path / "run")
    assert record.method.config["r"] == 2
    assert (record.training.seed, record.training.learning_rate) == (7, 0.01)


def test_train_as_json_prints_the_record_and_nothing_else(train, tmp_path):
    result = train("--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == RunRecord.read(tmp_path / "run").to_dict()


def test_the_recorded_command_repeats_the_run(train, tmp_path):
    first = json.loads(train("--json", "--set", "r=2", "--set", "target_modules=query,value").stdout)
    words = [word.replace(str(tmp_path / "run"), str(tmp_path / "again")) for word in command_of(first)]
    again = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    for part in ("metrics", "predictions", "curve", "method", "training", "data", "parameters"):
        assert again[part] == first[part]


def test_a_reducer_is_recorded_with_the_command_that_repeats_it(train, tmp_path):
    options = ("--reducer-set", "active_layers=1", "--reducer-set", "select=last")
    for flags, recorded in (
        ((), None),
        (("--reducer",), {}),
        (options, {"active_layers": 1, "select": "last"}),
    ):
        result = train("--json", "--dry-run", *flags)
        assert result.exit_code == 0, result.stderr
        record = json.loads(result.stdout)
        assert record["status"] == "dry run"
        assert (record["reducer"] and record["reducer"]["options"]) == recorded
        again = CliRunner().invoke(cli, [*command_of(record), "--json", "--dry-run"])
        assert json.loads(again.stdout)["reducer"] == record["reducer"]


def test_an_unknown_option_of_the_reducer_is_refused(train, tmp_path):
    result = train("--reducer-set", "active_fracton=0.5")
    assert result.exit_code == 2
    assert "unknown option 'active_fracton' of the Reducer. Did you mean 'active_fraction'?" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(train, tmp_path):
    result = train("--dry-run")
    assert result.exit_code == 0, result.stderr
    for word in ("48 train, 16 validation", "trainable parameters", "3 of 8 rows", "learning rate"):
        assert word in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_dry_run_into_a_folder_that_is_there_says_so(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    result = train("--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path / 'run'}, which exists: add --overwrite" in result.stdout
    assert "which exists" not in train("--dry-run", "--overwrite").stdout


_REMARKS = ("columns read: ", "2 classes in ")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set", "rr=2"), "Did you mean"),
        (("--set", "r"), "key=value"),
        (("--set", "r=-1"), "-1"),
        (("--set", "target_modules=nowhere"), "query"),
        (("--text-column", "body"), "'sentence', 'label'"),
        (("--steps", "0"), "above 0"),
        (("--epochs", "2"), "give one of them"),
        (("--kind", "ranking"), "unknown kind"),
        (("--task", "mrcp"), "Did you mean 'mrpc'"),
        (("--tlora-ratio", "4"), "'core' applies to no parameter"),
        (("--tlora-ratio", "-1"), "above 0"),
        (("--tlora-ratio", "4", "--loraplus-ratio", "16"), "give one of them"),
        (("--lr-group", "dwon=2"), "Did you mean 'down'"),
        (("--lr-group", "up=fast"), "above 0"),
        (("--lr-group", "up"), "key=value"),
        (("--lr-base-role", "core"), "tlora_ratio"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_use_is_one_line_with_a_remedy_and_exit_code_2(train, tmp_path, more, words):
    result = train(*more)
    assert result.exit_code == 2
    assert words in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith(_REMARKS))
    assert line.startswith("error: ")
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "lroa"}, "Did you mean 'lora'"),
        ({"model": "/nowhere/at/all"}, "there is no model at '/nowhere/at/all'"),
        ({"data": "/nowhere/at/all"}, "no data"),
    ],
    ids=["method", "model", "data"],
)
def test_a_name_that_does_not_exist_has_exit_code_2(train, change, words):
    result = train(**change)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_an_existing_folder_has_exit_code_2_and_stays(train, tmp_path):
    assert train().exit_code == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    result = train("--seed", "1")
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert train("--seed", "1", "--overwrite").exit_code == 0
    assert (tmp_path / "run" / "run.json").read_bytes() != before


def test_a_loss_that_is_not_a_number_has_exit_code_1_and_no_traceback(train, tmp_path):
    result = train("--learning-rate", "1e9", "--precision", "fp32", "--steps", "30")
    assert result.exit_code == 1
    assert "lower --learning-rate" in result.stderr
    assert "Traceback" not in result.stderr
    assert RunRecord.read(tmp_path / "run").status == "failed"


@pytest.mark.parametrize(
    ("method", "more", "names"),
    [
        ("tlora_plus", ("--tlora-ratio", "4"), ["down", "core x8", "up x2", "head"]),
        (
            "tlora_plus",
            ("--tlora-ratio", "4", "--lr-base-role", "core"),
            ["down x0.125", "core", "up x0.25", "head"],
        ),
        ("lora", ("--loraplus-ratio", "16"), ["down", "up x16", "head"]),
        ("lora", ("--lr-group", "up=2", "--lr-group", "head=0.5"), ["down", "up x2", "head x0.5"]),
    ],
    ids=["ratio", "base role", "lora plus", "free"],
)
def test_the_table_of_rates_stands_before_the_training_and_in_the_record(
    train, tmp_path, method, more, names
):
    result = train(*more, method=method)
    assert result.exit_code == 0, result.stderr
    table, _, training = result.stderr.partition("training:")
    assert training
    assert all(f"\n{name}  " in table for name in names)
    groups = RunRecord.read(tmp_path / "run").training.groups
    assert list(dict.fromkeys(group.name for group in groups)) == names


def test_a_recorded_command_repeats_the_rates(train, tmp_path):
    more = ("--lr-group", "up=2", "--lr-group", "core=8.5")
    first = json.loads(train("--json", *more, method="tlora_plus").stdout)
    words = [word.replace(str(tmp_path / "run"), str(tmp_path / "again")) for word in command_of(first)]
    again = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert first["training"]["rates"] == {"groups": {"up": 2, "core": 8.5}}
    for part in ("training", "curve"):
        assert again[part] == first[part]


def test_a_training_without_ratios_shows_no_table(train):
    assert "learning rate" not in train().stderr.partition("training:")[0]


def test_run_that_predicts_one_class_says_so_and_shows_baseline_rows_and_interval(train, tmp_path):
    result = train("--learning-rate", "1e-8", "--metric", "mcc", "--metric", "macro_f1,f1")
    assert result.exit_code == 0, result.stderr
    record = RunRecord.read(tmp_path / "run")
    assert list(record.metrics)[:4] == ["matthews", "macro_f1", "f1", "accuracy"]
    assert record.task.metric == "matthews"
    assert record.baseline_metrics["majority"].keys() == record.metrics.keys()
    assert "a model that never looks (majority) has 0" in result.stderr
    assert "48 train, 16 validation" in result.stdout
    assert "95 % interval" in result.stdout
    assert "macro_f1 of majority" in result.stdout


def test_class_weights_change_the_training_and_are_recorded(train, tmp_path):
    assert train("--class-weights", "balanced").exit_code == 0
    assert RunRecord.read(tmp_path / "run").request.class_weights == "balanced"
    refusal = train("--class-weights", "balanced", "--kind", "regression", "--overwrite")
    assert "class weights are for kinds with classes, not for regression" in refusal.stderr


def test_help_has_sections_and_an_example():
    result = CliRunner().invoke(cli, ["train", "--help"])
    assert result.exit_code == 0
    headings = ("What to train:", "Data:", "How to train:", "Learning rates by role:", "Where:")
    for heading in (*headings, "Other options:", "Examples:"):
        assert heading in result.stdout


def printed_config(*words):
    result = CliRunner().invoke(cli, ["train", *words, "--print-config"])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_printed_config_can_be_given_back_and_the_command_line_comes_first(tmp_path):
    file = tmp_path / "run.yaml"
    words = ("--model", "minilm", "--method", "lora", "--out", "run", "--set", "r=2", "--epochs", "2")
    file.write_text(printed_config(*words, "--freeze-head", "--learning-rate", "1e-3", "--set", "alpha=4"))
    assert printed_config("--config", str(file)) == file.read_text()
    changed = printed_config("--config", str(file), "--set", "r=3", "--steps", "5", "--no-freeze-head")
    before, after = (set(text.splitlines()) for text in (file.read_text(), changed))
    assert before - after == {"  r: 2", "epochs: 2.0", "freeze_head: true"}
    assert after - before == {"  r: 3", "steps: 5", "freeze_head: false"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("set: {r: 4}", "unknown setting 'set' of '{file}'. Did you mean 'options'?"),
        ("learning-rate: 0.1", "Did you mean 'learning_rate'?"),
        ("lr-group: {down: 2}", "Did you mean 'lr_groups'?"),
        ("reducer-set: {}", "Did you mean 'reducer'?"),
        ("modle: minilm", "unknown setting 'modle' of '{file}'. Did you mean 'model'?"),
        ("model: m\nmethod: lora\nbatch_size: many", "batch_size is 'many'; give a whole number above 0"),
        ("just words", "write lines such as `method: lora`"),
        ("model: [", "cannot read '{file}'"),
        ("model: minilm", "a run needs a method; add --method."),
    ],
)
def test_config_that_cannot_be_used_is_refused_with_a_remedy(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    result = CliRunner().invoke(cli, ["train", "--config", str(file), "--out", str(tmp_path / "run")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words.format(file=file) in result.stderr


def test_config_that_is_not_there_is_named(tmp_path):
    result = CliRunner().invoke(cli, ["train", "--config", str(tmp_path / "run.yaml")])
    assert result.exit_code == 2
    assert f"there is no '{tmp_path / 'run.yaml'}'" in result.stderr


def test_config_trains(train, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("options: {r: 2}\nseed: 7\nlearning_rate: 1e-2\n")
    assert train("--config", file).exit_code == 0
    record = RunRecord.read(tmp_path / "run")
    assert record.method.config["r"] == 2
    assert (record.training.seed, record.training.learning_rate) == (7, 0.01)


class Stop:
    """A progress that stops a run as Ctrl-C does, after two checkpoints of one step."""

    def start(self, total, description):
        pass

    def advance(self, done, **fields):
        if done == 3:
            raise KeyboardInterrupt

    def finish(self):
        pass


@pytest.fixture
def stopped(tiny_bert, reviews, tmp_path):
    """The words of a command whose run was stopped."""
    request = RunRequest(
        model=str(tiny_bert),
        method="lora",
        data=str(reviews),
        out=tmp_path / "run",
        steps=4,
        max_length=32,
        checkpoint_every=1,
    )
    with pytest.raises(KeyboardInterrupt):
        run(request, progress=Stop())
    return list(request.command()[1:])


def test_stopped_run_goes_on_with_its_folder_alone(stopped, tmp_path):
    result = CliRunner().invoke(cli, ["train", "--resume", "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.stderr
    assert "resuming" in result.stderr
    assert "checkpoint-2" in result.stderr
    assert json.loads(result.stdout)["training"]["steps"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_stopped_run_goes_on_with_its_command_and_resume(stopped):
    result = CliRunner().invoke(cli, stopped)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--resume" in result.stderr
    assert "--overwrite" in result.stderr
    assert CliRunner().invoke(cli, [*stopped, "--resume"]).exit_code == 0
    again = CliRunner().invoke(cli, [*stopped, "--resume"])
    assert again.exit_code == 0
    assert "done already" in again.stderr


def test_finished_run_is_returned_with_its_folder_alone(stopped, tmp_path):
    words = ["train", "--resume", "--out", str(tmp_path / "run"), "--json"]
    first, again = (CliRunner().invoke(cli, words) for _ in range(2))
    assert (again.exit_code, again.stdout) == (0, first.stdout), again.stderr
    assert "done already" in again.stderr
    refused = CliRunner().invoke(cli, [*words, "--seed", "3"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "seed was 0 and is 3" in refused.stderr
    assert CliRunner().invoke(cli, [*words, "--threads", "2"]).exit_code == 0


def test_resuming_where_there_is_nothing_says_so(stopped, tmp_path):
    result = CliRunner().invoke(cli, [*stopped, "--resume", "--out", str(tmp_path / "other")])
    assert result.exit_code == 0
    assert "nothing to resume" in result.stderr


def test_resuming_with_half_a_command_or_without_a_run_has_exit_code_2(stopped, tmp_path):
    out = str(tmp_path / "run")
    for words, what in (
        (["--resume", "--out", out, "--seed", "3"], "seed was 0 and is 3"),
        (["--out", out, "--method", "lora"], "--model"),
        (["--resume", "--out", str(tmp_path / "nowhere")], "no unfinished run"),
        ([*stopped[1:], "--resume", "--steps", "5"], "steps was 4 and is 5"),
    ):
        result = CliRunner().invoke(cli, ["train", *words])
        assert (result.exit_code, result.stdout) == (2, "")
        assert what in result.stderr


@pytest.mark.parametrize("flag", ["--save-best", "--seed", "--data", "--set", "--class-weights"])
def test_option_is_no_value_of_the_one_before_it(flag):
    result = CliRunner().invoke(cli, ["train", "--model", "minilm", flag, "--eval-every", "5"])
    assert result.exit_code == 2
    assert f"{flag} needs a value, but '--eval-every' is an option" in result.stderr


def test_options_of_nested_commands_need_their_values_too():
    result = CliRunner().invoke(cli, ["data", "show", "--data", "--json"])
    assert "--data needs a value, but '--json' is an option" in result.stderr


def test_a_metric_to_save_by_that_is_not_measured_is_found_by_its_option(train):
    result = train("--save-best", "f1_macro", "--validate", "epochs")
    assert "give --metric macro_f1 with --save-best macro_f1" in result.stderr


def test_only_values_that_are_given_are_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path))
    words = ("--method", "lora", "--class-weights", "spam=5,ham=1")
    assert printed_config(*words) == "method: lora\nclass_weights:\n  spam: 5.0\n  ham: 1.0\n"


def test_classes_are_weighed_by_name_or_sampled_alike(train, tmp_path):
    refusal = train("--class-weights", "godo=5,bad=1")
    assert "unknown class 'godo' of class_weights" in refusal.stderr
    both = train("--class-weights", "1=5", "--sampling", "balanced")
    assert "class_weights and sampling are both given" in both.stderr
    assert train("--class-weights", "1=5", "--overwrite").exit_code == 0
    record = RunRecord.read(tmp_path / "run")
    assert record.request.class_weights == {"1": 5.0}
    assert '{"1": 5.0}' in command_of(record.to_dict())
