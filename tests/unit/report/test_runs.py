"""What the page says of one run."""

from dataclasses import replace

from rankfold.report.sections import run_facts
from rankfold.train.schedule import RateGroup
from tests.support.records import make_record


def facts(record):
    return {group["name"]: dict(group["facts"]) for group in run_facts("a row", record, "accuracy")["groups"]}


def test_rates_by_role_are_shown_where_they_differ_and_nowhere_else():
    plain = make_record("tlora_plus")
    groups = (RateGroup("down", 1.0, 5e-5, 0.0, 12, 36_864), RateGroup("core", 8.0, 4e-4, 0.0, 12, 768))
    training = replace(plain.training, rates={"tlora_ratio": 4.0}, groups=groups)
    shown = facts(replace(plain, training=training))
    assert shown["Learning rates"] == {"down": "5e-05", "core x8": "0.0004"}
    assert shown["Training"]["tlora ratio"] == "4"
    assert "Learning rates" not in facts(plain)
    assert shown["Training"].keys() - facts(plain)["Training"].keys() == {"tlora ratio"}


def test_operations_are_shown_as_an_estimate_where_the_record_has_them():
    record = make_record("lora")
    assert "operations, estimated" not in facts(record)["Time"]
    assert facts(replace(record, flops=1.234e15))["Time"]["operations, estimated"] == "1.23e+15"


def test_version_and_scoring_are_shown_where_the_record_has_them():
    record = make_record("lora")
    assert not {"version", "scoring"} & facts(record)["Data"].keys()
    shown = facts(replace(record, task=replace(record.task, version=2, scoring="generated")))["Data"]
    assert (shown["version"], shown["scoring"], shown["licence"]) == ("2", "generated", "CC0")
