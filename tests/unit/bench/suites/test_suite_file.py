"""A suite file: profiles, sweeps and claims are written out as they are read, and what is wrong is named."""

from pathlib import Path

import pytest

from rankfold.bench.suites.protocol import check_suite
from rankfold.bench.suites.suite_file import read_suite
from rankfold.errors import SpecError
from tests.support.packaged import PROFILES, packaged

HEAD = 'name = "some"\nseeds = [0]\n[base]\nmodel = "minilm"\n'
SWEPT = '[[methods]]\nname = "lora"\nsweep = { r = [4, 8] }\n'
BOTH = 'expect = "greater"\ncompare = [["lora r=4", "lora r=8"]]\n'
CLAIM = '[[claims]]\nid = "X1"\nsource = "a paper"\ntext = "It is so."\n'


def written(folder, text):
    path = folder / "suite.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_profile_of_a_packaged_suite_can_be_run(name, profile):
    check_suite(packaged(name, profile), Path("out"))


def test_suite_with_an_option_that_is_not_there_is_refused(tmp_path):
    swept = '[[methods]]\nname = "tlora"\nsweep = { "warmup.r" = [2, 4] }'
    with pytest.raises(SpecError, match=r"unknown option 'warmup\.r'"):
        check_suite(read_suite(written(tmp_path, HEAD + 'task = "bbc_news"\n' + swept)), tmp_path)


def test_suite_whose_data_is_the_users_asks_for_it():
    with pytest.raises(SpecError, match="neither a task nor data is given"):
        check_suite(read_suite("relayed-glue", "transcripts"), Path("out"))


def test_sweep_is_one_method_for_each_combination_of_options_and_settings(tmp_path):
    text = '[[methods]]\nname = "tlora_plus"\nsweep = { r = [4, 8], tlora_ratio = [1.0, 4.0] }'
    methods = read_suite(written(tmp_path, HEAD + text)).methods
    assert [(each.options, each.settings) for each in methods] == [
        ({"r": r}, {"tlora_ratio": ratio}) for r in (4, 8) for ratio in (1.0, 4.0)
    ]


def test_sweep_reaches_inside_a_setting(tmp_path):
    text = '[[methods]]\nname = "lora"\nsweep = { "reducer.active_fraction" = [0.5, 0.25] }'
    methods = read_suite(written(tmp_path, HEAD + text)).methods
    assert [each.settings["reducer"] for each in methods] == [
        {"active_fraction": 0.5},
        {"active_fraction": 0.25},
    ]


def test_profile_says_what_differs_and_keeps_the_rest(tmp_path):
    text = f"""{HEAD}batch_size = 8
{SWEPT}
[profiles.small]
base = {{ steps = 3 }}
[profiles.large]
base = {{ model = "smollm2" }}
options = {{ alpha = 4.0 }}
tasks.mrpc = {{ epochs = 2.0 }}
"""
    file = written(tmp_path, text)
    first, large = read_suite(file), read_suite(file, "large")
    assert first.base == {"model": "minilm", "batch_size": 8, "steps": 3}
    assert large.base == {"model": "smollm2", "batch_size": 8}
    assert [each.options for each in large.methods] == [{"alpha": 4.0, "r": 4}, {"alpha": 4.0, "r": 8}]
    assert [request.task for request in large.requests(Path("out"))] == ["mrpc", "mrpc"]
    with pytest.raises(SpecError, match="Did you mean 'small'"):
        read_suite(file, "smal")


def test_profile_that_is_like_another_says_only_what_differs_from_that(tmp_path):
    text = f"""{HEAD}batch_size = 8
{SWEPT}
[profiles.first]
base = {{ steps = 3 }}
options = {{ alpha = 4.0 }}
tasks.mrpc = {{}}
seeds = [5]
[profiles.second]
like = "first"
base = {{ epochs = 2.0 }}
options = {{ dropout = 0.1 }}
seeds = [6]
[profiles.third]
like = "second"
tasks.sst2 = {{}}
"""
    third = read_suite(written(tmp_path, text), "third")
    assert third.base == {"model": "minilm", "batch_size": 8, "epochs": 2.0}
    assert third.methods[0].options == {"alpha": 4.0, "dropout": 0.1, "r": 4}
    assert (list(third.tasks), third.seeds) == (["sst2"], (6,))


@pytest.mark.parametrize("named", ["frist", "second", "itself"])
def test_profile_is_like_one_above_it(tmp_path, named):
    text = f'{HEAD}{SWEPT}[profiles.first]\n[profiles.itself]\nlike = "{named}"\n[profiles.second]\n'
    with pytest.raises(SpecError, match=f"unknown profile '{named}' of those above 'itself'.*first"):
        read_suite(written(tmp_path, text), "first")


def test_profile_of_a_suite_without_profiles_is_refused():
    with pytest.raises(SpecError, match="has no profiles"):
        read_suite("quick", "cpu")


def test_method_runs_on_its_tasks_only(tmp_path):
    text = f'{HEAD}[tasks]\nmrpc = {{}}\nsst2 = {{}}\n{SWEPT}[[methods]]\nname = "tlora"\ntasks = ["sst2"]'
    names = {request.out.name for request in read_suite(written(tmp_path, text)).requests(Path("out"))}
    assert names == {
        "mrpc-lora_r=4-seed0",
        "mrpc-lora_r=8-seed0",
        "sst2-lora_r=4-seed0",
        "sst2-lora_r=8-seed0",
        "sst2-tlora-seed0",
    }


def test_names_of_runs_stay_when_a_suite_grows_by_a_task(tmp_path):
    small = read_suite(written(tmp_path, f"{HEAD}[tasks]\nmrpc = {{}}\n{SWEPT}"))
    large = read_suite(written(tmp_path, f"{HEAD}[tasks]\nmrpc = {{}}\nsst2 = {{}}\n{SWEPT}"))
    before, after = ({each.out for each in suite.requests(Path("out"))} for suite in (small, large))
    assert before < after


def test_claim_is_written_out_for_each_value_or_along_them(tmp_path):
    compare = 'compare = [["lora r={r}", "lora r=4"]]\neach = { r = [8] }\n'
    along = 'compare = [["lora r={r}"]]\neach = { r = [4, 8, 16] }\n'
    swept = SWEPT.replace("[4, 8]", "[4, 8, 16]")
    text = f'{HEAD}{swept}{CLAIM}expect = "greater"\n{compare}{CLAIM}expect = "rising"\n{along}'
    greater, rising = read_suite(written(tmp_path, text)).claims
    assert greater.comparisons == (("lora r=8", "lora r=4"),)
    assert rising.comparisons == (("lora r=4", "lora r=8", "lora r=16"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLAIM + 'expect = "greater"\ncompare = [["lora r=9", "lora r=4"]]', "names no row .* 'lora r=4'"),
        (CLAIM + 'expect = "greater"\ncompare = [["lora", "lora r=4"]]', "names several rows"),
        (CLAIM + 'expect = "greater"\ncompare = [["lora r=4"]]', "has 1 rows; 'greater' takes 2"),
        (CLAIM + 'expect = "rising"\ncompare = [["lora r=4", "lora r=8"]]', "'rising' takes 3 or more"),
        (CLAIM + BOTH + 'profiles = ["cpu"]', "unknown profile 'cpu' of the claim 'X1'"),
        ("[rules]\nmargin = 0.0", r"rules\.margin: .* greater than 0"),
        ("[rules]\ntask = 1", "rules.task: unknown, did you mean 'tasks'"),
        (CLAIM + 'expect = "larger"\ncompare = []', "claims.0.expect"),
        (CLAIM + BOTH + 'tasks = ["mnli"]', "unknown task 'mnli' of the claim"),
        ("[profiles.cpu]\nmodel = []", "profiles.cpu.model: unknown, did you mean 'models'"),
        ("[tuning]\nspaces = {}", "tuning.spaces: unknown, did you mean 'space'"),
        ('[[methods]]\nname = "lora"\nlearning_rat = 1.0', "Did you mean 'learning_rate'"),
        ('[[methods]]\nname = "lora"\nsteps = 5', "unknown setting 'steps' of the method 'lora'"),
        ('[[methods]]\nname = "lora"\nsweep = { r = [] }', "sweep of 'r' .* is empty"),
        ('[[methods]]\nname = "tlora"\nprofiles = ["cpu"]', "unknown profile 'cpu' of the method"),
        ('[[methods]]\nname = "tlora"\ntune = { r = [2, 4] }', "tunes nothing"),
        ("[tuning]\ntrials = 3\nspace = { learning_rate = [0.1, 0.2] }", "a grid has 2 combinations"),
        (
            "[tuning]\nspace = { r = [1, 2] }\ntasks = { mnli = { steps = 2 } }",
            "unknown task 'mnli' of the tuning",
        ),
        ('[[methods]]\nname = "tlora"\ntasks = ["mnli"]', "unknown task 'mnli' of the method"),
    ],
)
def test_suite_that_asks_for_what_is_not_there_is_refused(tmp_path, text, message):
    with pytest.raises(SpecError, match=message):
        check_suite(read_suite(written(tmp_path, HEAD + SWEPT + text)), tmp_path)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ('expect = "greater"\ncompare = []', r"claims\.0\.compare: .* at least 1 item"),
        ('expect = "greater"\ncompare = [["", "lora r=4"]]', "'' of the claim 'X1' names no row"),
        ('expect = "greater"\ncompare = [["lora r=4", "lora r=4"]]', "has the row 'lora r=4' twice"),
        (BOTH + "each = { r = [] }", r"claims\.0\.each\.r: .* at least 1 item"),
        (BOTH + "each = { r = [4, 8] }", r"each of the claim 'X1' has 'r', but no row has \{r\}"),
        (BOTH + "margin = nan", r"claims\.0\.margin: .* finite"),
        (BOTH.replace("greater", "within") + "margin = -0.1", r"claims\.0\.margin: .* or equal to 0"),
    ],
)
def test_claim_that_can_say_nothing_is_refused(tmp_path, claim, message):
    with pytest.raises(SpecError, match=message):
        read_suite(written(tmp_path, HEAD + SWEPT + CLAIM + claim))


def test_comparison_without_a_place_for_the_values_counts_once(tmp_path):
    compare = 'compare = [["lora r={r}", "tlora"], ["tlora", "lora r=4"]]\neach = { r = [4, 8] }\n'
    text = f'{HEAD}{SWEPT}[[methods]]\nname = "tlora"\n{CLAIM}expect = "greater"\n{compare}'
    (read,) = read_suite(written(tmp_path, text)).claims
    assert read.comparisons == (("lora r=4", "tlora"), ("lora r=8", "tlora"), ("tlora", "lora r=4"))


@pytest.mark.parametrize("by_method", [False, True])
def test_range_that_cannot_be_searched_is_refused_as_the_suite_is_read(tmp_path, by_method):
    usual, other = (f"{{ learning_rate = {{ low = 1, high = {high} }} }}" for high in (2, 0))
    text = f'{HEAD}[tuning]\nsampler = "tpe"\ntrials = 2\nspace = {usual if by_method else other}\n{SWEPT}'
    with pytest.raises(SpecError, match="the range of 'learning_rate' is from '1' to '0'"):
        read_suite(written(tmp_path, text + (f"tune = {other}" if by_method else "")))


def test_suite_file_that_is_not_utf_8_is_refused_and_one_with_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "suite.toml"
    file.write_text(HEAD + SWEPT, "utf-8-sig")
    assert read_suite(str(file)).name == "some"
    file.write_text(f"# café\n{HEAD}{SWEPT}", "latin-1")
    with pytest.raises(SpecError, match=r"suite\.toml' is not UTF-8 .*; save it as UTF-8"):
        read_suite(str(file))


def test_claim_of_parity_has_the_margin_of_the_rules_and_the_former_name_is_read(tmp_path):
    rules = "[rules]\nmargin = 0.03\n"
    claims = [CLAIM + BOTH.replace("greater", expect) for expect in ("within", "equivalent", "greater")]
    text = (
        HEAD
        + rules
        + SWEPT
        + "".join(claims)
        + CLAIM
        + BOTH.replace("greater", "equivalent")
        + "margin = 0.02"
    )
    read = read_suite(written(tmp_path, text)).claims
    assert [claim.expect for claim in read] == ["not inferior", "equivalent", "greater", "equivalent"]
    assert [claim.margin for claim in read] == [0.03, 0.03, 0.0, 0.02]
    assert [claim.bound for claim in read] == [-0.03, 0.03, 0.0, 0.02]
