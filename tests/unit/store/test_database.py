"""A store's file is made, brought up to date, refused if it is none, left alone if it cannot be written."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from rankfold import AdapterStore, StoreError
from rankfold.errors import FullStoreError
from rankfold.store.database import APPLICATION_ID, MIGRATIONS, VERSION
from tests.support import store_work
from tests.support.stored import make_adapter, same

VERSION_1 = Path(__file__).with_name("version_1.sql")


def write_sql(path, script):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def test_store_of_the_first_version_is_brought_up_to_date(tmp_path):
    path = write_sql(tmp_path / "old.db", VERSION_1.read_text())
    with AdapterStore(path) as store:
        assert [(record.name, record.bytes) for record in store.list()] == [
            ("customers/a", make_adapter(1, head=1).learned_bytes),
            ("customers/b", make_adapter(2, head=1).learned_bytes),
            ("other", make_adapter(3, size=300, layers=1).learned_bytes),
        ]
        assert same(store.get("customers/b"), make_adapter(2, head=1))
        assert store.record("customers/b").metrics == {"accuracy": 0.8, "f1": 1 / 3}
        assert not list(store.verify())
        assert (store.stats().version, store.gc().parts) == (VERSION, 1)


def test_old_and_new_stores_have_the_same_tables(tmp_path):
    def declared(path):
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()

    old = write_sql(tmp_path / "old.db", VERSION_1.read_text())
    AdapterStore(old).close()
    AdapterStore(tmp_path / "new.db").close()
    assert declared(old) == declared(tmp_path / "new.db")


def test_published_steps_have_not_changed():
    script = VERSION_1.read_text()
    assert all(statement in script for statement in MIGRATIONS[0])


def test_old_store_opened_for_reading_is_left_as_it_was(tmp_path):
    path = write_sql(tmp_path / "old.db", VERSION_1.read_text())
    content = path.read_bytes()
    with pytest.raises(StoreError, match="has version 1 of 2; open it once for writing"):
        AdapterStore(path, "read")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("CREATE TABLE notes (text)", "is no store"),
        (f"PRAGMA application_id = {APPLICATION_ID}", "is no store"),
        (f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}", "is no store"),
        (f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99", "has version 99"),
        ("PRAGMA user_version = 1", "is no store"),
    ],
    ids=["another program's", "mark alone", "without its tables", "of the future", "without its mark"],
)
def test_other_database_is_refused_and_left_as_it_was(tmp_path, script, match):
    path = write_sql(tmp_path / "other.db", script)
    content = path.read_bytes()
    for mode in ("create", "write", "read"):
        with pytest.raises(StoreError, match=match):
            AdapterStore(path, mode)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "addition",
    [
        "CREATE TRIGGER act AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "CREATE VIEW more AS SELECT * FROM records",
        "CREATE TABLE more (x)",
        "DROP INDEX tags_by_value",
    ],
)
def test_store_with_other_tables_than_ours_is_refused(tmp_path, addition):
    AdapterStore(tmp_path / "store.db").close()
    write_sql(tmp_path / "store.db", addition)
    with pytest.raises(StoreError, match="is no store"):
        AdapterStore(tmp_path / "store.db")


@pytest.mark.parametrize(
    "content", [b"not a database at all", b"SQLite format 3\0" + b"\xff" * 100, b"\0" * 4096]
)
def test_file_that_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(StoreError):
        AdapterStore(path)
    assert path.read_bytes() == content


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"absent/store\.db' cannot be opened"):
        AdapterStore(tmp_path / "absent" / "store.db")


def test_writer_waits_its_time_and_then_says_who_holds_it_up(tmp_path):
    with (
        AdapterStore(tmp_path / "store.db") as first,
        AdapterStore(tmp_path / "store.db", wait=0.01) as second,
        first.batch(),
    ):
        first.put("a", make_adapter())
        assert len(second) == 0
        with pytest.raises(StoreError, match="is busy"):
            second.put("b", make_adapter())


def test_reader_sees_one_state_while_another_writes(tmp_path):
    with AdapterStore(tmp_path / "store.db") as writer, AdapterStore(tmp_path / "store.db", "read") as reader:
        writer.put("a", make_adapter(1))
        records = reader.list()
        assert next(records).name == "a"
        writer.put("a", make_adapter(2), replace=True)
        assert same(reader.get("a"), make_adapter(2))


@pytest.mark.parametrize("name", ["big", "a"], ids=["put", "replace"])
def test_store_is_as_it_was_when_the_disk_is_full(tmp_path, name):
    path = tmp_path / "store.db"
    with AdapterStore(path) as store:
        store.put("a", make_adapter(1))
    assert "nothing was changed" in store_work.told_by(store_work.put_with_little_room, path, name)
    with AdapterStore(path, "read") as store:
        assert [record.name for record in store.list()] == ["a"]
        assert same(store.get("a"), make_adapter(1))
        assert not list(store.verify())


def test_full_database_says_so_and_can_still_be_used(tmp_path):
    with AdapterStore(tmp_path / "store.db") as store:
        store.put("a", make_adapter(1))
        with store._database.plain() as connection:
            connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(FullStoreError, match="disk is full; nothing was changed"):
            store.put("big", make_adapter(2, size=90_000))
        assert [record.name for record in store.list()] == ["a"]
        store.put("b", make_adapter(3))
        assert not list(store.verify())


def test_read_only_folder_is_said_and_nothing_changes(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with AdapterStore(folder / "store.db") as store:
        store.put("a", make_adapter(1))
    content = (folder / "store.db").read_bytes()
    (folder / "store.db").chmod(0o444)
    folder.chmod(0o555)
    try:
        for mode in ("create", "write"):
            assert "cannot be" in store_work.told_by(store_work.put_as_nobody, folder / "store.db", mode)
        assert store_work.told_by(store_work.read_as_nobody, folder / "store.db") == ["a"]
    finally:
        folder.chmod(0o755)
    assert (folder / "store.db").read_bytes() == content
    assert [path.name for path in folder.iterdir()] == ["store.db"]


def test_child_process_has_a_connection_of_its_own(tmp_path):
    assert store_work.told_by(store_work.put_in_a_fork, tmp_path / "store.db") == "child, parent"
