"""A store gives back what was put, byte for byte, finds it again, and stores once what is shared."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold import AdapterFileError, AdapterStore, SpecError, StoreError
from rankfold.errors import OutputExistsError
from rankfold.store.saved import write_packed
from rankfold.store.size import explain
from tests.support.stored import make_adapter, same


@pytest.fixture
def store(tmp_path):
    with AdapterStore(tmp_path / "store.db") as opened:
        yield opened


def names(records):
    return [record.name for record in records]


@pytest.mark.parametrize(
    "saved",
    [
        make_adapter(),
        make_adapter(head=1),
        make_adapter(size=5000),
        make_adapter(size=300_000, layers=1),
        make_adapter(layers=0),
        make_adapter(size=0),
    ],
    ids=["small", "with a head", "parts of their own", "long pieces", "no tensors", "empty tensors"],
)
def test_adapter_comes_back_byte_for_byte(store, saved):
    store.put("a", saved)
    assert same(store.get("a"), saved)
    assert store.record("a").bytes == saved.learned_bytes
    assert not list(store.verify())


def test_adapter_is_put_from_a_directory_and_from_a_packed_file(store, tmp_path):
    saved = make_adapter(head=1)
    saved.write(tmp_path / "adapter")
    write_packed(tmp_path / "adapter", tmp_path / "packed")
    store.put("directory", tmp_path / "adapter")
    store.put("file", tmp_path / "packed")
    assert same(store.get("directory"), saved)
    assert same(store.get("file"), saved)


@settings(max_examples=30)
@given(
    st.lists(
        st.builds(
            make_adapter,
            st.integers(0, 5),
            size=st.integers(0, 40),
            layers=st.integers(0, 3),
            head=st.none() | st.integers(0, 1),
            note=st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=5,
    )
)
def test_any_adapters_come_back(tmp_path_factory, adapters):
    with AdapterStore(tmp_path_factory.mktemp("any") / "store.db") as store:
        for index, saved in enumerate(adapters):
            store.put(f"a{index}", saved)
        assert all(same(store.get(f"a{index}"), saved) for index, saved in enumerate(adapters))
        assert not list(store.verify())
        assert store.stats().learned_bytes == sum(saved.learned_bytes for saved in adapters)


def test_what_adapters_share_is_stored_once(store):
    for seed in range(3):
        store.put(f"a{seed}", make_adapter(seed, head=7))
    stats = store.stats()
    assert stats.families == 1
    assert stats.parts == 3 + 1
    assert stats.learned_bytes - stats.stored_bytes == 2 * 2 * 100 * 4


def test_configuration_is_kept_for_each_adapter_of_a_kind(store):
    kept = {f"a{seed}": make_adapter(seed, note="x" * seed) for seed in range(5)}
    for name, saved in kept.items():
        store.put(name, saved)
    assert store.stats().families == 1
    assert all(store.get(name).config == saved.config for name, saved in kept.items())


def test_name_that_is_taken_is_replaced_only_when_asked(store):
    store.put("a", make_adapter(1), tags={"old": "1"})
    with pytest.raises(OutputExistsError, match="'a'"):
        store.put("a", make_adapter(2))
    assert same(store.get("a"), make_adapter(1))
    store.put("a", make_adapter(2), replace=True)
    assert same(store.get("a"), make_adapter(2))
    assert store.record("a").tags == {}


def test_adapter_that_is_deleted_is_gone_and_its_room_comes_back(store):
    store.put("a", make_adapter(1, size=9000))
    store.put("b", make_adapter(2, size=8))
    store.delete("a")
    assert "a" not in store
    assert len(store) == 1
    assert store.stats().unused_bytes == 4 * 9000 * 4
    before = store.stats().file_bytes
    freed = store.gc()
    assert (freed.parts, freed.families) == (4, 1)
    assert before - store.stats().file_bytes == freed.file_bytes > 100_000
    assert same(store.get("b"), make_adapter(2, size=8))
    assert not list(store.verify())


def test_name_that_is_not_there_is_named_with_its_neighbours(store):
    for action in (store.get, store.record, store.delete):
        with pytest.raises(SpecError, match="the store is empty"):
            action("a")
    store.put("ab", make_adapter())
    with pytest.raises(SpecError, match="names near it are ab"):
        store.get("a")


@pytest.mark.parametrize("name", ["", "a b", "../a", "a//b", "-a", "a\n", "ä", "a" * 300, "/a"])
def test_name_that_could_do_harm_is_refused(store, name):
    with pytest.raises(SpecError):
        store.put(name, make_adapter())
    with pytest.raises(SpecError):
        store.put("a", make_adapter(), tags={name: "x"})
    with pytest.raises(SpecError):
        store.put("a", make_adapter(), metrics={name: 1.0})


def test_labels_that_cannot_be_kept_are_refused(store):
    with pytest.raises(SpecError, match="finite"):
        store.put("a", make_adapter(), metrics={"loss": float("nan")})
    with pytest.raises(SpecError, match="longer"):
        store.put("a", make_adapter(), tags={"note": "x" * 300})
    assert len(store) == 0


def test_list_goes_on_over_many_pages_while_the_store_changes(store):
    with store.batch():
        for index in range(1203):
            store.put(f"a{index:04}", make_adapter(index, layers=1, size=1))
    seen = []
    for record in store.list():
        seen.append(record.name)
        if record.name == "a0001":
            store.delete("a0900")
    assert seen == [f"a{index:04}" for index in range(1203) if index != 900]


def test_batch_is_all_or_nothing(store):
    def put_twice():
        with store.batch():
            store.put("a", make_adapter(1))
            store.put("a", make_adapter(2))

    with pytest.raises(OutputExistsError):
        put_twice()
    assert len(store) == 0


def test_failure_within_a_batch_undoes_only_itself_when_it_is_caught(store):
    with store.batch():
        store.put("a", make_adapter(1))
        with pytest.raises(OutputExistsError):
            store.put("a", make_adapter(2))
        store.put("b", make_adapter(2))
    assert names(store.list()) == ["a", "b"]
    assert not list(store.verify())


def test_record_says_what_the_adapter_is(store):
    record = store.put("a", make_adapter(), tags={"z": "1", "b": "2"}, metrics={"f1": 0.1 + 0.2})
    assert record == store.record("a") == next(store.list())
    assert (record.base, record.method, record.metrics["f1"]) == ("tiny", "tlora", 0.1 + 0.2)
    other = make_adapter(peft_type="LORA")
    assert store.put("b", other).method == "lora"


@pytest.mark.parametrize("mode", ["read", "write"])
def test_store_that_is_not_there_is_made_only_when_asked(tmp_path, mode):
    with pytest.raises(StoreError, match="there is no store"):
        AdapterStore(tmp_path / "absent.db", mode)
    assert not (tmp_path / "absent.db").exists()


def test_store_opened_for_reading_is_not_changed(store, tmp_path):
    store.put("a", make_adapter())
    with AdapterStore(tmp_path / "store.db", "read") as reader:
        assert same(reader.get("a"), make_adapter())
        for change in (lambda: reader.put("b", make_adapter()), lambda: reader.delete("a"), reader.gc):
            with pytest.raises(StoreError, match="opened for reading"):
                change()


def test_damaged_directory_is_refused_and_nothing_is_stored(store, tmp_path):
    make_adapter().write(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 1}))
    with pytest.raises(AdapterFileError, match="peft_type"):
        store.put("a", tmp_path / "adapter")
    assert len(store) == 0


def test_store_in_place_of_an_adapter_is_refused_with_the_spelling_of_a_record(tmp_path):
    with AdapterStore(tmp_path / "s.db") as store:
        store.put("a", make_adapter())
    with pytest.raises(AdapterFileError, match=r"this is a store; name a record of it as .*#NAME"):
        explain(tmp_path / "s.db")


def test_store_that_is_closed_says_so(tmp_path):
    store = AdapterStore(tmp_path / "store.db")
    store.close()
    with pytest.raises(StoreError, match="closed"):
        len(store)


@pytest.mark.parametrize(
    "change", ["UPDATE pieces SET data = x'00'", "DELETE FROM pieces", "UPDATE parts SET bytes = 1"]
)
def test_damaged_adapters_are_whole_again_when_one_like_them_is_put(store, change):
    for name in ("a", "b"):
        store.put(name, make_adapter(head=1))
    with store._database.plain() as connection:
        connection.execute(change)
    assert {fault.name for fault in store.verify()} == {"a", "b"}
    store.put("c", make_adapter(head=1))
    assert not list(store.verify())
    assert all(same(store.get(name), make_adapter(head=1)) for name in "abc")


def test_many_adapters_come_in_the_order_of_their_names_as_given(store):
    with store.batch():
        for seed in range(250):
            store.put(f"a{seed}", make_adapter(seed, layers=1))
    wanted = [f"a{seed}" for seed in range(249, -1, -2)]
    found = list(store.get_many(wanted))
    assert [name for name, _ in found] == wanted
    assert all(same(saved, make_adapter(int(name[1:]), layers=1)) for name, saved in found)
    with pytest.raises(SpecError, match="'absent'"):
        list(store.get_many(["a1", "absent"]))


def test_gc_within_a_batch_is_refused_and_the_batch_goes_on(store):
    with store.batch():
        store.put("a", make_adapter())
        with pytest.raises(SpecError, match="after the batch"):
            store.gc()
        store.put("b", make_adapter())
    assert names(store.list()) == ["a", "b"]
