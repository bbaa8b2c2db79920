"""`rankfold compare` with a suite: what the command line changes of it, and what is there of another."""

import json

import pytest

from tests.support.records import Trainer

TWO = ("--task", "bbc_news", "--method", "lora r=8", "--method", "peft:lora r=8", "--seeds", "0")


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


def test_mixture_is_dealt_out_as_said(compare):
    trainer = Asked()
    compare("--task", "mrpc+sst2", *TWO[2:], "--mixture", "all", trainer=trainer)
    assert trainer.values("mixture") == {("all",)}
