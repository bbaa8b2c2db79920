"""What a store says of an adapter is what the published schema says it is."""

import json

import jsonschema
import pytest

from docs.generate import SCHEMA, record_schema
from rankfold import AdapterFileError, AdapterStore, Record
from tests.support.stored import make_adapter

PUBLISHED = json.loads(SCHEMA.read_text("utf-8"))


def test_published_schema_is_that_of_the_code():
    assert SCHEMA.read_text("utf-8") == record_schema(), "run `make docs`."
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)


@pytest.fixture
def records(tmp_path):
    with AdapterStore(tmp_path / "store.db") as store:
        store.put("a", make_adapter())
        store.put(
            "team-1/b@v2.0", make_adapter(base=None, peft_type="LORA"), tags={"x": ""}, metrics={"f1": 1}
        )
        store.put("c", make_adapter(layers=0, head=1), metrics={"loss": -1e300, "steps": 3.0})
        yield [json.loads(json.dumps(record.to_dict())) for record in store.list()]


def test_real_records_keep_to_the_schema_and_are_read_by_the_code(records):
    assert len(records) == 3
    for values in records:
        jsonschema.validate(values, PUBLISHED, cls=jsonschema.Draft202012Validator)
        assert Record.from_dict(values).to_dict() == values


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"format": 5},
        {"bytes": -1},
        {"bytes": "1"},
        {"bytes": 1.5},
        {"name": "a b"},
        {"name": ""},
        {"created": "2026-11-01"},
        {"digest": "xyz"},
        {"tags": {"a": 1}},
        {"tags": {"a b": "c"}},
        {"metrics": {"a": "0.5"}},
        {"base": None},
    ],
    ids=str,
)
def test_schema_and_code_refuse_the_same(records, change):
    values = records[0] | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, PUBLISHED, cls=jsonschema.Draft202012Validator)
    with pytest.raises(AdapterFileError, match=next(iter(change))):
        Record.from_dict(values)


@pytest.mark.parametrize("field", ["name", "base", "method", "bytes", "created", "digest"])
def test_field_that_is_missing_is_refused_by_both(records, field):
    values = {key: value for key, value in records[0].items() if key != field}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, PUBLISHED, cls=jsonschema.Draft202012Validator)
    with pytest.raises(AdapterFileError, match=field):
        Record.from_dict(values)
