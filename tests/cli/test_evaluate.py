"""`rankfold evaluate`: takes from the run what is not said, and refuses what does not fit."""

import json
import shutil

import peft
import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import rankfold
from rankfold.cli.main import cli
from tests.support.tiny_models import question_rows, review_rows, write_bert, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def _call(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tiny_bert, reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = _call(
        *(
            "train",
            "--model",
            tiny_bert,
            "--data",
            reviews,
            "--method",
            "lora",
            "--out",
            folder,
            "--steps",
            6,
        ),
        *("--batch-size", 8, "--max-length", 32, "--learning-rate", 0.02),
    )
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained, tmp_path / "adapter")


def test_evaluating_a_run_gives_its_own_metrics(trained):
    result = _call("evaluate", trained, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads((trained / "run.json").read_text("utf-8"))
    measured = json.loads(result.stdout)
    assert measured["metrics"] == record["metrics"]
    names = record["task"]["label_names"]
    assert measured["predictions"] == [
        {**item, "label": names[item["label"]], "prediction": names[item["prediction"]]}
        for item in record["predictions"]
    ]


def test_a_run_on_a_base_in_bf16_is_measured_on_a_base_in_bf16(tiny_bert, reviews, tmp_path):
    words = ("--model", tiny_bert, "--data", reviews, "--method", "lora", "--steps", 2, "--max-length", 32)
    trained = _call("train", *words, "--base-dtype", "bf16", "--out", tmp_path / "run", "--json")
    assert trained.exit_code == 0, trained.stderr
    measured = json.loads(_call("evaluate", tmp_path / "run", "--json").stdout)
    assert measured["loss"] == json.loads(trained.stdout)["curve"]["validation"][-1]["loss"]


@pytest.fixture(scope="module")
def new_file(tmp_path_factory):
    """Rows that the run has not seen, in one file."""
    path = tmp_path_factory.mktemp("new") / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in review_rows(30, seed=7)), "utf-8")
    return path


def test_all_rows_of_a_new_file_are_measured_unless_a_split_is_asked_for(trained, new_file):
    measured = json.loads(_call("evaluate", trained, "--data", new_file, "--json").stdout)
    assert (measured["split"], measured["rows"], len(measured["predictions"])) == ("all", 30, 30)
    held_out, rest = (
        json.loads(_call("evaluate", trained, "--data", new_file, "--split", split, "--json").stdout)
        for split in ("validation", "train")
    )
    assert 0 < held_out["rows"] < 15
    assert held_out["rows"] + rest["rows"] == 30
    refused = _call("evaluate", trained, "--data", new_file, "--split", "test")
    assert (refused.exit_code, "leave --split out" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("splits", "split", "count"),
    [(("test",), "test", 10), (("train", "test"), "test", 10), (("validation", "test"), "validation", 20)],
)
def test_the_split_of_a_folder_is_the_one_that_was_not_trained_on(trained, tmp_path, splits, split, count):
    sizes = {"train": 40, "validation": 20, "test": 10}
    folder = write_splits(tmp_path / "new", **{name: review_rows(sizes[name], seed=7) for name in splits})
    measured = json.loads(_call("evaluate", trained, "--data", folder, "--json").stdout)
    assert (measured["split"], measured["rows"]) == (split, count)


def test_the_columns_of_new_data_are_those_of_the_run(trained, tmp_path):
    rows = [{"label": row["label"], "text": "the", "sentence": row["sentence"]} for row in review_rows(20)]
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = _call("evaluate", trained, "--data", path)
    assert "text from 'sentence'" in result.stderr
    other = _call("evaluate", trained, "--data", path, "--text-column", "text")
    assert "text from 'text'" in other.stderr


def test_the_file_of_the_run_itself_is_measured_with_a_remark(tiny_bert, new_file, tmp_path):
    words = ("--model", tiny_bert, "--data", new_file, "--method", "lora", "--steps", 1, "--max-length", 32)
    assert _call("train", *words, "--out", tmp_path / "run").exit_code == 0
    assert "trained on most of its rows" in _call("evaluate", tmp_path / "run", "--data", new_file).stderr
    assert "trained on" not in _call("evaluate", tmp_path / "run").stderr


def test_that_a_run_had_fewer_rows_is_told(adapter):
    assert "the run had" not in _call("evaluate", adapter).stderr
    record = json.loads((adapter / "run.json").read_text("utf-8"))
    measured = record["data"]["rows"]["validation"]
    record["data"]["rows"]["validation"] = 2
    (adapter / "run.json").write_text(json.dumps(record), "utf-8")
    assert f"the run had 2 of these {measured} rows" in _call("evaluate", adapter).stderr


def test_another_split_is_measured_when_asked_for(trained):
    measured = json.loads(_call("evaluate", trained, "--split", "test", "--json").stdout)
    assert (measured["split"], measured["rows"]) == ("test", 12)
    assert "accuracy" in _call("evaluate", trained, "--split", "test").stdout


def test_an_adapter_without_record_and_manifest_needs_its_model_and_data(adapter, tiny_bert, reviews):
    (adapter / "run.json").unlink()
    (adapter / "rankfold.json").unlink()
    alone = _call("evaluate", adapter)
    assert alone.exit_code == 2
    assert "--model" in alone.stderr
    named = _call("evaluate", adapter, "--model", tiny_bert, "--data", reviews, "--max-length", 32, "--json")
    assert named.exit_code == 0, named.stderr


def _truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def _no_config(folder):
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(("spoil", "words"), [(_truncate, "damaged"), (_no_config, "adapter_config.json")])
def test_a_spoilt_adapter_has_exit_code_2_and_a_remedy(adapter, spoil, words):
    spoil(adapter)
    result = _call("evaluate", adapter)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("other", [{"seed": 5}, {"hidden_size": 8}, {"layers": 3}], ids=str)
@pytest.mark.parametrize("has_record", [True, False])
def test_an_adapter_of_another_base_has_exit_code_2(adapter, reviews, tmp_path, other, has_record):
    if not has_record:
        (adapter / "run.json").unlink()
    base = write_bert(tmp_path / "other", **other)
    result = _call("evaluate", adapter, "--model", base, "--data", reviews, "--max-length", 32)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "base model" in result.stderr or "--model" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--batch-size", "0"), "batch_size is 0"),
        (("--max-length", "0"), "max_length is 0"),
        (("--max-length", "65"), "takes 64 tokens"),
    ],
    ids=str,
)
def test_a_number_that_makes_no_sense_has_exit_code_2(trained, words, fault):
    result = _call("evaluate", trained, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert fault in result.stderr


def test_an_unknown_split_has_a_suggestion(trained):
    result = _call("evaluate", trained, "--split", "tset")
    assert result.exit_code == 2
    assert "Did you mean 'test'" in result.stderr


def test_what_a_run_was_told_of_its_data_holds_for_its_evaluation(tiny_llama, tmp_path):
    rows = [{**row, "user": place // 4} for place, row in enumerate(question_rows(80))]
    data = write_splits(tmp_path / "asked", train=rows)
    out = tmp_path / "run"
    named = ("--model", tiny_llama, "--data", data, "--method", "lora", "--out", out)
    asked = ("--group-column", "user", "--scoring", "generated", "--max-length", 60, "--steps", 1)
    trained = _call("train", *named, *asked)
    assert trained.exit_code == 0, trained.stderr
    assert "by generated" in trained.stdout
    measured = json.loads(_call("evaluate", out, "--json").stdout)
    record = json.loads((out / "run.json").read_text("utf-8"))
    assert (measured["metrics"], measured["scoring"]) == (record["metrics"], "generated")
    assert {item["id"] // 4 for item in measured["predictions"]} != set(range(20))
    otherwise = json.loads(_call("evaluate", out, "--scoring", "likelihood", "--json").stdout)
    assert "unparsed" not in otherwise["metrics"]


def test_people_on_both_sides_have_exit_code_2_and_are_named(tiny_bert, tmp_path):
    rows = [{**row, "speaker": f"p{place % 5}"} for place, row in enumerate(review_rows(20))]
    data = write_splits(tmp_path / "talks", train=rows, validation=rows[:3])
    named = ("--model", tiny_bert, "--data", data, "--method", "lora", "--out", tmp_path / "run")
    result = _call("train", *named, "--group-column", "speaker")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'p0', 'p1', 'p2' of 'speaker' are in the split 'train' and in 'validation'" in " ".join(
        result.stderr.split()
    )


def test_a_kind_that_was_not_learned_is_refused(trained):
    result = _call("evaluate", trained, "--kind", "regression")
    assert result.exit_code == 2
    assert "kind is 'regression', and what" in result.stderr
    assert "learned is classification; leave it out" in result.stderr


def test_harness_prints_a_table_or_json_and_writes_its_full_result(tiny_llama, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in review_rows(8)))
    (tmp_path / "review.yaml").write_text(
        "task: review\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "output_type: multiple_choice\ndoc_to_text: '{{sentence}}'\ndoc_to_choice: ['false', 'true']\n"
        "doc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = rankfold.config("lora", r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    words = ("evaluate", tmp_path / "adapter", "--model", tiny_llama, "--harness", "review")
    words = (*words, "--harness-include", tmp_path, "--limit", 6)
    table = _call(*words, "--out", tmp_path / "full.json")
    assert table.exit_code == 0, table.stderr
    assert "standard error" in table.stdout
    (metric,) = json.loads(_call(*words, "--json").stdout)["metrics"]
    assert f"{metric['value']:.4f}" in table.stdout
    assert f"{metric['stderr']:.4f}" in table.stdout
    full = json.loads((tmp_path / "full.json").read_text("utf-8"))
    assert full["results"]["review"]["acc,none"] == metric["value"]
    assert full["n-samples"]["review"]["effective"] == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--harness", "review", "--split", "test"), "bring their own data; leave --split out"),
        (("--harness", "review", "--task", "mrpc"), "bring their own data; leave --task out"),
        (("--limit", 3), "--limit is of the harness; name a task with --harness, or leave it out"),
        (("--harness", "review"), "is not a causal language model"),
    ],
)
def test_options_that_do_not_fit_the_harness_are_refused(trained, words, message):
    result = _call("evaluate", trained, *words)
    assert result.exit_code != 0
    assert message in result.stderr
