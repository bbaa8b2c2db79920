"""`rankfold compare` runs a suite, says what it found and what failed, and goes on where it stopped."""

import json
import logging

import pytest
from click.testing import CliRunner

from rankfold.bench.executors import cluster
from rankfold.cli.console import shown_notes
from rankfold.cli.main import cli
from rankfold.errors import TrainingError
from tests.support.records import Trainer

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


def test_compare_that_cannot_be_foreseen_fails_already_when_it_is_dry(tiny_bert):
    words = ["compare", "--dry-run", "--model", str(tiny_bert), "--max-length", "32", "--task", "bbc_news"]
    assert CliRunner().invoke(cli, [*words, "--method", "lora r=2"]).exit_code == 0
    result = CliRunner().invoke(cli, [*words, "--method", "lora r=0"])
    assert result.exit_code == 1
    assert "r=0" in result.stderr


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [((), "the same command goes on"), (("--overwrite",), "the same command without --overwrite goes on")],
)
def test_compare_that_is_interrupted_says_which_command_goes_on(compare, words, goes_on):
    def interrupted(request, *, progress=None):
        raise KeyboardInterrupt

    result = compare(*TWO, *words, trainer=interrupted)
    assert result.exit_code == 130
    assert f"what is done is kept; {goes_on} from there" in result.stderr


def test_what_is_logged_again_is_shown_once(capsys):
    for _ in range(2):
        with shown_notes():
            for word in ("first", "second", "first"):
                logging.getLogger("rankfold.train").info(word)
    assert capsys.readouterr().err.split() == ["first", "second"] * 2


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
