"""`rankfold compare` runs a suite, says what it found and what failed, and goes on where it stopped."""

import json

import pytest
from click.testing import CliRunner

from rankfold.bench.suite import protocol
from rankfold.bench.suite.executors import cluster
from rankfold.bench.suite.executors.executor import Inline
from rankfold.cli.main import cli
from rankfold.errors import TrainingError
from tests.support.records import Trainer


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """Return a function that compares with a stand-in for training."""
    original = protocol.run_suite

    def call(*words, trainer=None):
        def with_stand_in(*given, **options):
            return original(*given, **{**options, "executor": Inline(trainer or Trainer())})

        monkeypatch.setattr(protocol, "run_suite", with_stand_in)
        return CliRunner().invoke(cli, ["compare", "--out", str(tmp_path / "out"), *words])

    return call


TWO = ("--task", "bbc_news", "--method", "lora r=8", "--method", "peft:lora r=8", "--seeds", "0")


def test_compare_prints_one_table_and_writes_its_files(compare, tmp_path):
    result = compare("--suite", "quick")
    assert result.exit_code == 0
    assert all(
        name in result.stdout for name in ("lora", "relayed_lora", "tlora_plus", "effilora", "reference")
    )
    assert {path.name for path in (tmp_path / "out").glob("*.*")} == {
        "report.html",
        "report.md",
        "records.csv",
        "suite.json",
    }


def test_compare_trains_every_method_with_every_seed(compare):
    trainer = Trainer()
    compare(*TWO, "--seeds", "0,1", trainer=trainer)
    assert trainer.asked == ["lora-seed0", "peft_lora-seed0", "lora-seed1", "peft_lora-seed1"]


def test_compare_as_json_prints_only_json(compare):
    (study,) = json.loads(compare(*TWO, "--json").stdout)["studies"]
    assert [row["label"] for row in study["rows"]] == ["lora", "peft:lora"]


def test_compare_called_again_keeps_what_is_done(compare):
    first, trainer = compare(*TWO), Trainer()
    again = compare(*TWO, trainer=trainer)
    assert trainer.asked == []
    assert again.stdout == first.stdout
    assert "2 of 2 runs were done before" in again.stderr


def test_compare_with_one_failure_shows_it_and_succeeds(compare):
    result = compare(*TWO, trainer=Trainer(["peft_lora-seed0"]))
    assert result.exit_code == 0
    assert "failed" in result.stdout
    assert "peft:lora, seed 0, failed: the loss is not a number" in result.stderr


def test_compare_fails_when_every_run_fails(compare, tmp_path):
    result = compare(*TWO, trainer=Trainer(["lora-seed0", "peft_lora-seed0"]))
    assert result.exit_code == 1
    assert "the loss is not a number" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("base", "places"),
    [
        ('models = ["minilm", "smollm2"]\n[base]\ntask = "bbc_news"', "smollm2 on bbc_news"),
        ('[base]\nmodel = "minilm"\n[tasks.bbc_news]\n[tasks.ag_news]', "minilm on ag_news"),
    ],
    ids=["model", "task"],
)
def test_compare_names_a_place_of_which_no_run_began_and_fails(compare, tmp_path, base, places):
    class Partial(Trainer):
        def __call__(self, request, *, progress=None):
            if f"{request.model} on {request.task}" == places:
                raise TrainingError("it cannot be read.")
            return super().__call__(request, progress=progress)

    top, _, rest = base.partition("[base]")
    (tmp_path / "some.toml").write_text(
        f'name = "some"\n{top}seeds = [0]\nmethods = [{{name = "lora"}}, {{name = "tlora"}}]\n[base]{rest}\n'
    )
    result = compare("--suite", str(tmp_path / "some.toml"), trainer=Partial())
    assert result.exit_code == 1, result.stderr
    assert f"no run of {places} began (it cannot be read)" in result.stderr
    assert "tlora" in result.stdout
    for name in ("report.html", "report.md"):
        assert f"There is no run of {places}: it cannot be read." in (tmp_path / "out" / name).read_text()
    later = CliRunner().invoke(cli, ["report", str(tmp_path / "out"), "--json"])
    assert f"There is no run of {places}:" in "".join(json.loads(later.stdout)["missing"])


def test_compare_reports_what_there_is_and_ends_with_what_another_process_is_making(compare, tmp_path):
    result = compare(*TWO, trainer=Trainer(elsewhere=["peft_lora-seed0"]))
    assert result.exit_code != 0
    assert "1 of 2 runs is made by another process (peft_lora-seed0)" in result.stderr
    assert "failed" not in result.stdout + result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "lora-seed0"}
    assert not (tmp_path / "out" / "peft_lora-seed0").exists()


def test_compare_of_which_another_process_makes_all_that_did_not_fail_says_so(compare):
    result = compare(*TWO, trainer=Trainer(["lora-seed0"], elsewhere=["peft_lora-seed0"]))
    assert result.exit_code != 0
    assert "made by another process" in result.stderr


def test_command_line_changes_the_budget_of_a_suite(compare):
    requests = []

    class Asking(Trainer):
        def __call__(self, request, *, progress=None):
            requests.append(request)
            return super().__call__(request, progress=progress)

    compare("--suite", "quick", "--epochs", "0.5", "--batch-size", "4", trainer=Asking())
    assert {(request.epochs, request.steps, request.batch_size) for request in requests} == {(0.5, None, 4)}


class Asked(Trainer):
    """A stand-in that keeps what it was asked for, whole."""

    def __init__(self):
        super().__init__()
        self.requests = []

    def __call__(self, request, *, progress=None):
        self.requests.append(request)
        return super().__call__(request, progress=progress)

    def values(self, *names):
        return {tuple(getattr(request, name) for name in names) for request in self.requests}


SAYING = """
name = "own"
seeds = [0]
models = ["smollm2", "roberta-base"]
[base]
steps = 50
[tasks]
mrpc = { epochs = 2.0, train_rows = 70, max_length = 32 }
stsb = { steps = 90, eval_rows = 30, batch_size = 4 }
[tuning]
space = { learning_rate = [1e-3, 3e-3] }
base = { steps = 5, eval_rows = 20 }
[[methods]]
name = "lora"
[[methods]]
name = "tlora"
tasks = ["stsb"]
"""


def said(tmp_path, text=SAYING):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return "--suite", str(path)


def test_command_line_wins_over_all_that_a_suite_says_of_it(compare, tmp_path):
    trainer = Asked()
    words = ["--model=minilm", "--steps=6", "--train-rows=7", "--eval-rows=8"]
    words += ["--max-length=9", "--batch-size=3"]
    assert compare(*said(tmp_path), *words, trainer=trainer).exit_code == 0
    budget = ("model", "epochs", "steps", "train_rows", "eval_rows", "max_length", "batch_size")
    assert trainer.values(*budget) == {("minilm", None, 6, 7, 8, 9, 3)}
    assert trainer.values("task", "method") == {("mrpc", "lora"), ("stsb", "lora"), ("stsb", "tlora")}


def test_task_of_the_command_line_takes_the_place_of_all(compare, tmp_path):
    for task, methods in (("stsb", {"lora", "tlora"}), ("rte", {"lora"})):
        trainer = Asked()
        assert compare(*said(tmp_path), "--task", task, trainer=trainer).exit_code == 0
        assert trainer.values("task", "method") == {(task, method) for method in methods}


def test_task_on_which_no_method_is_run_is_refused(compare, tmp_path):
    text = SAYING.replace('"lora"', '"lora"\ntasks = ["stsb"]', 1)
    result = compare(*said(tmp_path, text), "--task", "rte")
    assert result.exit_code == 2
    assert "no method of the suite 'own' is run on 'rte'" in result.stderr


def test_learning_rate_of_the_command_line_is_that_of_all_methods_of_a_suite(compare):
    trainer = Asked()
    compare("--suite", "quick", "--steps", "6", "--learning-rate", "0.01", trainer=trainer)
    assert trainer.values("steps", "learning_rate") == {(6, 0.01)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--learning-rate", "0.1"), "learning_rate is tuned"),
        (("--data", "x.csv"), "name the task of the data"),
    ],
)
def test_option_that_means_nothing_beside_a_suite_is_refused(compare, tmp_path, words, message):
    trainer = Trainer()
    result = compare(*said(tmp_path), *words, trainer=trainer)
    assert (result.exit_code, trainer.asked) == (2, [])
    assert message in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to compare"),
        ((*TWO, "--profile", "cpu"), "--profile cpu is given without a suite"),
        (("--suite", "quik"), "Did you mean 'quick'"),
        (("--suite", "quick", "--method", "lora"), "both given"),
        (("--task", "bbc_news", "--method", "lroa"), "Did you mean 'lora'"),
        (("--task", "bbc_news", "--method", "lora rank=8"), "'rank'"),
        (("--task", "bbc_news", "--method", "lora", "--seeds", "a,b"), "whole numbers"),
        (("--suite", "quick", "--steps", "0"), "steps is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_use_is_refused_before_anything_is_trained(compare, tmp_path, words, message):
    trainer = Trainer()
    result = compare(*words, trainer=trainer)
    assert result.exit_code == 2
    assert message in result.stderr
    assert trainer.asked == []
    assert not (tmp_path / "out").exists()


def kept(tmp_path):
    return json.loads((tmp_path / "out" / "suite.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--suite", "quick"), "it is called 'compare', and this one 'quick'"),
        ((*TWO[:4], "--seeds", "0"), "the method 'peft:lora' is not in this one"),
        ((*TWO[:2], *TWO[4:], "--method", "lora r=16"), "'lora' is not in this one, or is another"),
        (("--task", "mrpc", *TWO[2:]), "holds another run"),
        (("--task", "mrpc", *TWO[2:6], "--seeds", "1"), "holds another run"),
    ],
)
def test_runs_of_another_suite_keep_their_suite(compare, tmp_path, words, message):
    compare(*TWO)
    before, trainer = kept(tmp_path), Trainer()
    result = compare(*words, trainer=trainer)
    assert (result.exit_code, trainer.asked) == (2, [])
    assert message in result.stderr
    assert kept(tmp_path) == before
    assert compare(*words, "--overwrite").exit_code == 0
    assert kept(tmp_path) != before


def test_suite_of_which_nothing_was_run_is_in_nobodys_way(compare, tmp_path):
    compare(*TWO, trainer=Trainer(["lora-seed0", "peft_lora-seed0"]))
    assert compare("--suite", "quick").exit_code == 0
    assert kept(tmp_path)["name"] == "quick"


def test_suite_that_was_damaged_is_written_anew(compare, tmp_path):
    compare(*TWO)
    (tmp_path / "out" / "suite.json").write_text("{")
    assert compare(*TWO).exit_code == 0
    assert kept(tmp_path)["name"] == "compare"


def test_seeds_that_are_added_later_belong_to_the_same_rows(compare, tmp_path):
    compare(*TWO)
    trainer = Trainer()
    result = compare(*TWO, "--seeds", "1,2", "--json", trainer=trainer)
    assert len(trainer.asked) == 4, "what was done before is not done again"
    assert kept(tmp_path)["seeds"] == [0, 1, 2]
    (study,) = json.loads(result.stdout)["studies"]
    assert [(row["label"], row["seeds"]) for row in study["rows"]] == [
        ("lora", [0, 1, 2]),
        ("peft:lora", [0, 1, 2]),
    ]


@pytest.mark.parametrize("words", [(), ("--overwrite",)])
def test_file_in_place_of_the_folder_is_refused(compare, tmp_path, words):
    (tmp_path / "file").touch()
    result = compare(*TWO, "--out", str(tmp_path / "file"), *words)
    assert result.exit_code == 2
    assert "cannot write" in result.stderr


@pytest.mark.parametrize("words", [TWO, ("--suite", "quick")])
def test_mixture_without_one_is_refused(compare, words):
    result = compare(*words, "--mixture", "all")
    assert result.exit_code == 2
    assert "'bbc_news' is one task; leave it out" in result.stderr


def test_mixture_is_dealt_out_as_said(compare):
    trainer = Asked()
    compare("--task", "mrpc+sst2", *TWO[2:], "--mixture", "all", trainer=trainer)
    assert trainer.values("mixture") == {("all",)}


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ((), (None, 1)),
        (("--jobs", "3", "--threads", "2"), (3, 2)),
    ],
)
def test_cluster_decides_how_many_runs_and_keeps_processors_for_their_threads(
    compare, monkeypatch, words, given
):
    asked = []
    monkeypatch.setattr(cluster, "Cluster", lambda jobs, *, threads: asked.append((jobs, threads)))
    assert compare(*TWO, "--executor", "ray", *words).exit_code == 0
    assert asked == [given]
