"""`rankfold fit` lists what fits, refuses what makes no sense, and chooses on the user's data."""

import functools
import json

import pytest
from click.testing import CliRunner
from transformers import ViTConfig

from rankfold.bench.estimates import count_on_meta
from rankfold.bench.executors.base import Inline
from rankfold.bench.fit import candidates
from rankfold.bench.fit import search as fitting
from rankfold.cli.main import cli
from rankfold.runs.record import RunRecord
from rankfold.runs.records import find_records

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def fit(tiny_bert, monkeypatch, without_charts):
    """Return a function that calls `rankfold fit` on the tiny model, with few ranks."""
    monkeypatch.setattr(candidates, "RANKS", (1, 2, 3, 4, 6, 8, 16, 256))

    def call(*words, model=tiny_bert, methods="lora,tlora,lora_fa"):
        return CliRunner().invoke(
            cli, ["fit", "--model", str(model), "--methods", methods, *(str(word) for word in words)]
        )

    return call


@pytest.fixture
def choose(fit, reviews, tmp_path):
    """Return a function that lets it choose on the tiny reviews."""

    def call(*words, **more):
        told = ("--budget-params", 500, "--run", "--data", reviews, "--out", tmp_path / "fit")
        sizes = ("--steps", 4, "--batch-size", 8, "--max-length", 32, "--candidates", 3)
        return fit(*told, *sizes, *words, **more)

    return call


def test_list_has_one_composition_of_each_method_within_the_budget(fit):
    data = json.loads(fit("--budget-params", "500", "--budget-bytes", "3KB", "--json").stdout)
    assert data["budget"] == {"params": 500, "bytes": 3000, "step": None}
    assert {each["method"] for each in data["compositions"]} == {"lora", "tlora", "lora_fa"}
    assert {each["dtype"] for each in data["compositions"]} == {"int4", "fp32"}
    for each in data["compositions"]:
        assert each["numbers"] <= 500
        assert each["bytes"] <= 3000
        assert 0 < each["use"] <= 1


def test_listed_numbers_are_those_of_params(fit, tiny_bert):
    for each in json.loads(fit("--budget-params", "500", "--json").stdout)["compositions"]:
        counted = count_on_meta(str(tiny_bert), each["method"], each["options"], kind=None, num_labels=2)
        assert each["numbers"] == counted.trainable


def test_method_that_is_not_on_the_list_is_named_with_the_reason(fit):
    told = ("--budget-params", "60")
    said, listed = fit(*told, methods="lora,tlora,lora_fa,mole"), json.loads(fit(*told, "--json").stdout)
    there = {each["method"] for each in listed["compositions"]}
    assert there == {"tlora"}
    assert listed["left_out"] == dict.fromkeys(["lora", "lora_fa"], "nothing of it fits")
    assert "lora_fa is left out: nothing of it fits." in said.stderr
    assert "mole is left out: " in said.stderr


def test_table_shows_all_of_it_on_demand_with_what_cannot_be_built(fit):
    short, full = fit("--budget-step", "1.5x"), fit("--budget-step", "1.5x", "--all")
    assert short.exit_code == full.exit_code == 0
    assert len(full.stdout.splitlines()) > 2 * len(short.stdout.splitlines())
    assert "No statement on quality" in short.stdout
    assert "--all shows them" in short.stderr
    assert "r=256 is more than the rank of" in full.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no budget"),
        (("--bytes", "9k", "--store", "int5"), "unknown type 'int5'"),
        (("--bytes", "9k", "--candidates", "0"), "candidates is 0"),
        (("--bytes", "9k", "--dry-run"), "--dry-run has no effect without --run"),
        (("--bytes", "9k", "--basis", "none.basis"), "there is no basis"),
        (("--budget-params", "many"), "'many' is no number of parameters; write it as 60k"),
        (("--budget-bytes", "1QB"), "'1QB' is no size; write it as 128KB"),
        (("--budget-step", "fast"), "'fast' is no multiple"),
        (("--budget-params", "1"), "nothing fits a budget of 1 trained parameters; the nearest is"),
        (("--budget-params", "9k", "--steps", "3"), "--steps has no effect without --run"),
        (("--budget-params", "9k", "--task", "bbc_news"), "--task has no effect without --run"),
        (("--budget-params", "9k", "--run", "--all"), "--all has no effect with --run"),
        (("--budget-params", "9k", "--run"), "neither a task nor data is given"),
        (("--budget-params", "9k", "--batch-size", "0"), "batch_size is 0"),
        (("--budget-params", "9k", "--store", "int4,,fp32"), "--store is 'int4,,fp32', which has an empty"),
        (("--budget-params", "9k", "--store", ""), "--store is '', which has an empty item"),
        (("--budget-params", "9k", "--kind", "clasification"), "Did you mean 'classification'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_wrong_use_is_one_line(fit, words, message):
    result = fit(*words, methods="lora")
    assert result.exit_code == 2
    assert message in result.stderr


def test_kind_follows_from_the_type_of_the_model_and_one_that_does_not_fit_is_refused(fit, tmp_path):
    ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16
    ).save_pretrained(tmp_path)
    words = ("--budget-params", "9k", "--json")
    result = fit(*words, model=tmp_path / "config.json", methods="lora")
    assert result.exit_code == 0, result.stderr
    named = fit(*words, "--kind", "image_classification", model=tmp_path / "config.json", methods="lora")
    assert json.loads(result.stdout) == json.loads(named.stdout)
    refused = fit(*words, "--kind", "classification", model=tmp_path / "config.json", methods="lora")
    assert refused.stderr.strip() == (
        "error: a model of type 'vit' cannot be built for tasks of the kind classification; name another "
        "kind by --kind."
    )


def test_unknown_method_is_named_with_the_nearest(fit):
    result = fit("--budget-params", "9k", methods="lora,tlroa")
    assert (result.exit_code, "Did you mean 'tlora'" in result.stderr) == (2, True)


def test_choice_is_made_on_rows_of_the_training_split_and_is_in_the_report(choose, tmp_path):
    result = choose("--eta", "2")
    assert result.exit_code == 0, result.stderr
    records = find_records(tmp_path / "fit")
    of_candidates = [record for record in records if record.fit.role == "candidate"]
    assert [record.training.steps for record in of_candidates] == [2, 2, 2, 4, 4]
    assert [record.method.name for record in records if record.fit.role == "reference"] == ["peft:lora"]
    assert {record.data.rows["train"] + record.data.rows["validation"] for record in records} == {48}
    assert "how it was chosen" in result.stdout
    assert "chosen: " in result.stderr
    assert "rankfold train --model" in result.stderr
    page = (tmp_path / "fit" / "report.html").read_text("utf-8")
    assert "How the composition was chosen" in page
    again = CliRunner().invoke(cli, ["report", str(tmp_path / "fit")])
    assert again.stdout == result.stdout


def test_choice_without_a_reference_says_so(fit, reviews, tmp_path):
    words = ("--budget-params", 20, "--run", "--data", reviews, "--out", tmp_path / "fit")
    result = fit(*words, "--steps", 1, "--batch-size", 8, "--max-length", 32, methods="tlora")
    assert result.exit_code == 0, result.stderr
    assert "PEFT's LoRA in float32 does not fit the budget" in result.stderr
    assert {record.fit.role for record in find_records(tmp_path / "fit")} == {"candidate"}


@pytest.mark.parametrize("dtype", ["int4", "fp32"])
def test_trained_adapters_are_as_large_as_was_counted(choose, tmp_path, dtype):
    choose("--steps", 1, "--store", dtype)
    plan = json.loads((tmp_path / "fit" / "fit.json").read_text("utf-8"))
    sizes = {each["method"]: each["size"] for each in plan["candidates"]}
    for record in find_records(tmp_path / "fit"):
        if record.fit.role == "reference":
            continue
        size = sizes[record.method.name]
        assert record.parameters.stored == size["numbers"]
        stored = record.bytes.learned if dtype == "fp32" else record.stored[dtype].bytes
        # Beside the adapter lies the head: a matrix in 8 bits or whole, and a vector.
        head = stored - size["bytes"]
        assert record.parameters.head <= head <= 4 * record.parameters.head


def test_the_plan_is_printed_and_nothing_is_written_in_a_dry_run(choose, tmp_path):
    result = choose("--dry-run", "--eta", 2)
    assert result.exit_code == 0, result.stderr
    assert "3 candidates: 3 of 2 steps, then 2 of 4 steps; " in result.stderr
    assert not (tmp_path / "fit").exists()


def test_the_chosen_adapter_is_written_as_it_is_to_be_stored_and_predicts(choose, tmp_path):
    result = choose("--store", "int4", methods="tlora")
    assert result.exit_code == 0, result.stderr
    chosen = tmp_path / "fit" / "chosen"
    assert "in int4; accuracy " in result.stderr
    assert "over PEFT's peft:lora" in result.stderr
    for adapter in (chosen, chosen / "adapter.rankfold"):
        predicted = CliRunner().invoke(cli, ["predict", str(adapter), "--text", "a fine film"])
        assert predicted.exit_code == 0, predicted.stderr


def test_choice_given_again_trains_nothing_and_says_the_same(choose):
    first, again = choose("--json", methods="lora,tlora"), choose("--json", methods="lora,tlora")
    assert first.exit_code == again.exit_code == 0
    assert again.stdout == first.stdout
    assert json.loads(first.stdout)["command"][:2] == ["rankfold", "train"]


def test_command_that_is_printed_trains_the_chosen_one(choose, tmp_path):
    command = json.loads(choose("--json", methods="lora").stdout)["command"]
    assert CliRunner().invoke(cli, command[1:]).exit_code == 0
    record = RunRecord.read(tmp_path / "fit" / "winner")
    assert record.data.rows == {"train": 48, "validation": 16}


def test_choice_fails_with_the_reason_when_every_candidate_does(choose, monkeypatch):
    def failing(request, *, progress=None):
        raise ValueError("no luck")

    monkeypatch.setattr(fitting, "fit", functools.partial(fitting.fit, executor=Inline(failing)))
    result = choose()
    assert result.exit_code == 1
    assert "all 3 runs failed" in result.stderr


def test_folder_of_another_choice_is_refused(choose):
    choose(methods="lora")
    result = choose("--seed", "1", methods="lora")
    assert result.exit_code == 2
    assert "holds another choice" in result.stderr
