"""The door: help without imports, one exit code per kind of failure, one line on stderr."""

import io
import subprocess
import sys
import warnings

import click
import pytest
from click.testing import CliRunner

from rankfold.cli import main as main_module
from rankfold.cli.console import PlainBar, print_json, print_table, progress_screen
from rankfold.cli.main import COMMANDS, Program, cli
from rankfold.cli.options import parse_settings
from rankfold.errors import (
    AdapterFileError,
    DataError,
    NoStoreError,
    OutputExistsError,
    RankfoldWarning,
    SpecError,
    StoreError,
    TrainingError,
)
from rankfold.progress import SECONDS_LEFT


def program(body):
    """A program whose only command, `size`, does `body`."""

    @click.command()
    def command():
        body()

    group = Program("rankfold", params=list(cli.params), callback=lambda: None)
    command.params.append(main_module._debug_option())
    group.commands["size"] = command
    return group


def failing(error):
    def body():
        raise error

    return program(body)


def test_help_and_misspelt_names_are_answered_before_anything_heavy_is_imported(tmp_path):
    model, misspelt = ["--model", "minilm"], ["--method", "loraa"]
    lines = [["--help"], ["--version"], ["trian"], ["train", "--help"], ["compare", "--help"]]
    lines += [["methods", "loraa"], ["methods", "peft:loraa"]]
    lines += [[name, *model, *misspelt] for name in ("params", "lr")]
    lines += [["bench", "estimate", *model, *misspelt, "--task", "bbc_news"]]
    lines += [["train", *model, *misspelt, "--task", "bbc_news", "--out", str(tmp_path / "run")]]
    lines += [["fit", *model, "--bytes", "9k", "--methods", "lora,loraa"]]
    lines += [["compare", *misspelt, "--method", "lora", "--task", "bbc_news"]]
    probe = (
        "import sys\n"
        "from rankfold.cli.main import cli\n"
        f"for words in {lines}:\n"
        "    try:\n        cli(words)\n"
        "    except SystemExit:\n        pass\n"
        "    heavy = {'torch', 'peft', 'transformers', 'datasets', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    finished = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("Did you mean") >= len(lines) - 4


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_debug(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "--debug" in result.stdout


def test_help_lists_every_command_and_is_shown_without_words():
    help_page = CliRunner().invoke(cli, ["--help"]).stdout
    assert all(f"  {name}  " in help_page for name in COMMANDS)
    assert CliRunner().invoke(cli, []).exit_code == 2


def test_help_before_a_command_is_the_help_of_the_command():
    before, after = (CliRunner().invoke(cli, words) for words in (["--help", "size"], ["size", "--help"]))
    assert before.stdout == after.stdout


def test_unknown_command_is_wrong_use_with_a_suggestion():
    result = CliRunner().invoke(cli, ["trian"])
    assert result.exit_code == 2
    assert "Did you mean 'train'?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("wrong", "meant"), [("--lr", "--learning-rate"), ("--Method", "--method")])
def test_unknown_option_is_wrong_use_with_the_option_that_is_meant(wrong, meant):
    result = CliRunner().invoke(cli, ["train", wrong, "1e-3"])
    assert result.exit_code == 2
    assert f"No such option '{wrong}'. Did you mean '{meant}'?" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("no such method."), 2),
        (DataError("no rows."), 2),
        (OutputExistsError("'out' exists."), 2),
        (click.UsageError("no such option."), 2),
        (NoStoreError("no store."), 2),
        (StoreError("busy."), 1),
        (TrainingError("not a number."), 1),
        (AdapterFileError("damaged."), 2),
        (click.ClickException("cannot."), 1),
        (ZeroDivisionError("division by zero"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_failure_has_its_exit_code_and_no_traceback(error, code):
    result = CliRunner().invoke(failing(error), ["size"])
    assert result.exit_code == code
    assert "Traceback" not in result.stderr
    assert str(error) in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("words", [["--debug", "size"], ["size", "--debug"]], ids=["before", "after"])
@pytest.mark.parametrize("error", [SpecError("no such method."), ZeroDivisionError("zero")], ids=type)
def test_debug_shows_the_traceback_wherever_it_stands(words, error):
    result = CliRunner().invoke(failing(error), words)
    assert "Traceback" in result.stderr
    assert result.exit_code == CliRunner().invoke(failing(error), ["size"]).exit_code


def test_debug_of_one_call_is_forgotten_in_the_next():
    group = failing(SpecError("no."))
    CliRunner().invoke(group, ["size", "--debug"])
    assert "Traceback" not in CliRunner().invoke(group, ["size"]).stderr


def test_unexpected_error_says_how_to_see_more_in_one_line():
    result = CliRunner().invoke(failing(ZeroDivisionError("division\nby zero")), ["size"])
    (line,) = result.stderr.splitlines()
    assert (
        line
        == "unexpected error: ZeroDivisionError: division by zero. Run again with --debug for the traceback."
    )


def test_warning_of_ours_is_one_line_without_a_place():
    def body():
        warnings.simplefilter("always")
        warnings.warn("use r=8.", RankfoldWarning, stacklevel=1)

    result = CliRunner().invoke(program(body), ["size"])
    assert (result.exit_code, result.stderr) == (0, "warning: use r=8.\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("r=8", 8),
        ("alpha=1e-3", 1e-3),
        ("init=uniform", "uniform"),
        ("bias=true", True),
        ("bias=True", True),
        ("rank_up=None", None),
        ("rank_up=null", None),
        ("target_modules=query,value", ["query", "value"]),
        ('target_modules=["query"]', ["query"]),
        ('rank_pattern={"query": 4}', {"query": 4}),
        ("pattern=a=b", "a=b"),
        ("layers_to_transform=0,2", [0, 2]),
        ("empty=", ""),
    ],
)
def test_setting_is_read_as_json_then_list_then_text(text, value):
    assert list(parse_settings([text]).values()) == [value]


@pytest.mark.parametrize("settings", [["r"], ["=8"], ["r=8", "r=9"]], ids=str)
def test_setting_that_cannot_be_read_is_refused(settings):
    with pytest.raises(SpecError):
        parse_settings(settings)


def test_table_shows_every_cell_whole_and_as_it_is(capsys):
    long = "x" * 300
    print_table(["[bold]name", "b"], [[long, "[red]1[/red]"]], title="[i]title")
    out = capsys.readouterr().out
    assert all(text in out for text in (long, "[red]1[/red]", "[bold]name", "[i]title"))
    assert "\x1b" not in out


def test_json_has_no_number_that_json_does_not_have(capsys):
    print_json({"a": [float("nan"), 1.5], "b": float("inf")})
    assert "NaN" not in (out := capsys.readouterr().out)
    assert "Infinity" not in out


def test_plain_progress_prints_at_most_every_ten_seconds_and_the_end():
    stream, now = io.StringIO(), [0.0]
    bar = PlainBar(stream, clock=lambda: now[0])
    bar.start(100, "training")
    for done in range(1, 101):
        now[0] += 1
        bar.advance(done, loss=0.5)
    bar.finish()
    bar.finish()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 10 + 1
    assert lines[1] == "training: 10/100, 1 min 30 s left loss 0.5"
    assert lines[-1] == "training: 100/100 in 1 min 40 s"


def test_work_that_knows_how_long_it_takes_is_believed():
    stream, now = io.StringIO(), [0.0]
    bar = PlainBar(stream, clock=lambda: now[0])
    bar.start(4, "runs")
    now[0] += 20
    bar.advance(1, **{SECONDS_LEFT: 125.0}, failed=1)
    assert stream.getvalue().splitlines()[-1] == "runs: 1/4, 2 min 05 s left failed 1"


def test_progress_without_a_terminal_goes_to_stderr_only(capsys):
    with progress_screen() as new_bar:
        bar = new_bar()
        bar.start(2, "training")
        bar.finish()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training: 0/2" in captured.err


@pytest.mark.parametrize("name", ["train", "evaluate", "compare", "fit", "params", "lr"])
def test_the_kind_of_a_task_has_one_name_in_every_command(name):
    assert "--kind" in CliRunner().invoke(cli, [name, "--help"]).stdout
