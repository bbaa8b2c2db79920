"""A stream with a right checksum may lie in its records: none of it is imported, the store is as it was."""

import dataclasses
import struct

import pytest

from rankfold import AdapterFileError, AdapterStore
from rankfold.store.container import Container, encode
from rankfold.store.packed import to_container
from rankfold.store.transfer import MAGIC, TYPE
from tests.support.stored import make_adapter, same

_LENGTH = struct.Struct("<Q")


@pytest.fixture
def store(tmp_path):
    with AdapterStore(tmp_path / "store.db") as store:
        store.put("kept", make_adapter(1), tags={"customer": "a"}, metrics={"f1": 0.5})
        yield store


def write_stream(path, records):
    """Write what anyone can: records that say what they like, each beside an adapter."""
    frames = b""
    for record in records:
        adapter = to_container(make_adapter(2))
        header = {"record": record, "adapter": dict(adapter.header)}
        frame = encode(Container(TYPE, header, adapter.tensors))
        frames += _LENGTH.pack(len(frame)) + frame
    path.write_bytes(MAGIC + frames + _LENGTH.pack(0) + _LENGTH.pack(len(records)))
    return str(path)


LIES = {
    "before 1970": ({"created": "1960-01-01T00:00:00Z"}, "is no time since 1970"),
    "no time": ({"created": "2024-13-45T99:00:00Z"}, "is no time since 1970"),
    "year 0": ({"created": "0000-01-01T00:00:00Z"}, "is no time since 1970"),
    "other digits": ({"created": "٢٠٢٤-01-01T00:00:00Z"}, "created"),
    "another base": ({"base": "other"}, "says base='other', but it is 'tiny'"),
    "another method": ({"method": "lora"}, "says method='lora', but it is 'tlora'"),
    "another size": ({"bytes": 7}, "says bytes=7, but it is 96"),
    "dots": ({"name": "a/../../x"}, "cannot be a name"),
    "dots in a tag": ({"tags": {"a//b": "c"}}, "cannot be a name"),
}


@pytest.mark.parametrize(("lie", "said"), LIES.values(), ids=LIES)
def test_record_that_differs_from_its_adapter_is_refused_with_the_whole_stream(store, tmp_path, lie, said):
    before = list(store.list())
    good = dataclasses.replace(store.put("good", make_adapter(2)), name="first").to_dict()
    store.delete("good")
    path = write_stream(tmp_path / "stream", [good, {**good, "name": "second", **lie}])
    for existing in ("refuse", "skip", "replace"):
        with pytest.raises(AdapterFileError, match="adapter 2: ") as caught:
            store.import_(path, existing=existing)
        assert said in str(caught.value)
        assert ";" in str(caught.value)
    assert list(store.list()) == before
    assert not list(store.verify())
    assert same(store.get("kept"), make_adapter(1))


def test_checksum_of_a_record_is_not_believed(store, tmp_path):
    good = store.put("good", make_adapter(2), tags={"b": "1", "a": "2"})
    store.delete("good")
    told = {**good.to_dict(), "digest": "f" * 32, "tags": {"b": "1", "a": "2"}}
    assert store.import_(write_stream(tmp_path / "stream", [told])) == 1
    assert store.record("good") == good


def test_time_that_is_none_in_a_store_is_said(store):
    with store._database.plain() as connection:
        connection.execute("UPDATE records SET created = -1")
    with pytest.raises(AdapterFileError, match="adapter 'kept': its time is damaged in the store; "):
        list(store.list())
    with pytest.raises(AdapterFileError, match="adapter 'kept': its time is damaged in the store; "):
        store.get("kept")
    assert [fault.name for fault in store.verify()] == ["kept"]
