"""Nothing that was put is ever lost: not by signal 9, not by other processes, not by a flipped bit."""

import random
import shutil
import sqlite3
import time
from contextlib import closing

import pytest

from rankfold import AdapterFileError, AdapterStore, StoreError
from tests.support import store_work
from tests.support.saved import make_adapter, payload, same

KILLS = {"put": 45, "gc": 30, "migration": 25}


def check(path, expected):
    """Open a store after a kill: it is whole, and has what it should."""
    with AdapterStore(path) as store:
        assert not list(store.verify())
        for name, saved in expected.items():
            assert same(store.get(name), saved)


@pytest.mark.parametrize(
    ("work", "kills", "size"),
    [
        (store_work.put_for_ever, KILLS["put"], 700),
        (store_work.collect_for_ever, KILLS["gc"], 300),
    ],
    ids=["put", "gc"],
)
def test_nothing_is_lost_when_a_writer_is_killed(tmp_path, work, kills, size):
    path, draw, kept, first = tmp_path / "store.db", random.Random(1), {}, 0
    for _ in range(kills):
        told = store_work.work_and_kill(
            work, path, first, after=draw.randrange(3), then_wait=draw.random() * 0.03
        )
        kept.update({f"kept/{seed}": make_adapter(seed, size=seed % size) for seed in told})
        first = max([first, *told]) + 2  # the last one may be there although nobody was told
        check(path, kept)
    assert len(kept) >= kills / 2


def test_nothing_is_lost_when_a_migration_is_killed(tmp_path):
    path, old, draw = tmp_path / "store.db", tmp_path / "old.db", random.Random(2)
    kept = {f"a{seed}": make_adapter(seed, layers=1) for seed in range(800)}
    with AdapterStore(old) as store, store.batch():
        for name, saved in kept.items():
            store.put(name, saved)
    make_first_version(old)
    stages, whole = [], time_of_migration(old, tmp_path / "timed.db")
    for attempt in range(KILLS["migration"]):
        for leftover in tmp_path.glob("store.db*"):
            leftover.unlink()
        shutil.copy(old, path)
        store_work.work_and_kill(
            store_work.bring_up_to_date, path, attempt, after=1, then_wait=1.5 * whole * draw.random()
        )
        with closing(sqlite3.connect(path)) as connection:
            stages.append(connection.execute("PRAGMA user_version").fetchone()[0])
        with AdapterStore(path) as store:
            assert len(store) == len(kept)
            assert store.stats().learned_bytes == sum(saved.learned_bytes for saved in kept.values())
        if attempt % 5 == 0:
            check(path, kept)
    assert 1 in stages, "every kill came too late."


def time_of_migration(old, path):
    shutil.copy(old, path)
    begin = time.monotonic()
    AdapterStore(path).close()
    return time.monotonic() - begin


def make_first_version(path):
    """Take back what the second version added."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "DROP INDEX records_by_kind; ALTER TABLE records DROP COLUMN bytes; PRAGMA user_version = 1;"
        )


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_writers_and_readers_work_side_by_side(tmp_path, seconds):
    path = tmp_path / "store.db"
    AdapterStore(path).close()
    writers = store_work.side_by_side(store_work.write_for, path, seconds, count=4)
    readers = store_work.side_by_side(store_work.read_for, path, seconds, count=4)
    expected = {name: seed for mine in writers() for name, seed in mine.items()}
    reads = readers()
    assert all(count > 0 and not wrong for count, wrong in reads), reads
    with AdapterStore(path) as store:
        assert {record.name for record in store.list()} == set(expected)
    check(path, {name: store_work.labelled(seed) for name, seed in expected.items()})


def test_several_processes_may_make_the_same_store(tmp_path):
    names = store_work.side_by_side(store_work.write_for, tmp_path / "store.db", 0.3, count=6)()
    check(tmp_path / "store.db", {name: store_work.labelled(s) for mine in names for name, s in mine.items()})


def test_every_flipped_byte_of_a_body_is_found(tmp_path):
    path, saved = tmp_path / "store.db", make_adapter(1, size=60)
    with AdapterStore(path) as store:
        store.put("a", saved)
        store.put("b", make_adapter(2))
    content = path.read_bytes()
    body = payload(saved)
    begin = content.index(body)
    with AdapterStore(path) as store, path.open("r+b", buffering=0) as file:
        for place in range(begin, begin + len(body)):
            write_byte(file, place, content[place] ^ (1 << place % 8))
            with AdapterStore(path, "read") as reader, pytest.raises(AdapterFileError):
                reader.get("a")
            write_byte(file, place, content[place])
        assert same(store.get("a"), saved)


def write_byte(file, place, value):
    file.seek(place)
    file.write(bytes([value]))


COLUMNS = {
    "kinds": ("base", "method", "outline", "outline_bytes", "template", "template_bytes", "digest"),
    "parts": ("digest", "bytes"),
    "pieces": ("data",),
    "records": ("name", "format", "created", "config", "config_bytes", "digest", "bytes"),
    "uses": ("position",),
    "tags": ("name", "value"),
    "metrics": ("name", "value"),
}


def damaged(value):
    """Yield values that differ from one in as little as possible, everywhere."""
    match value:
        case bytes():
            for place in range(len(value)):
                changed = bytearray(value)
                changed[place] ^= 1 << place % 8
                yield bytes(changed)
        case str():
            yield from (value[:place] + "~" + value[place + 1 :] for place in range(len(value)))
        case float():
            yield value + 1e-9
        case _:
            yield from (value + 1, -value - 7, value + 2**40)


@pytest.mark.parametrize(("table", "column"), [(t, c) for t, columns in COLUMNS.items() for c in columns])
def test_every_change_of_a_row_is_found_by_verify(tmp_path, table, column):
    path = tmp_path / "store.db"
    with AdapterStore(path) as store:
        store.put("a", make_adapter(1, note="x"))
        store.put("b", make_adapter(2, note="y"), tags={"k": "v"}, metrics={"m": 0.5})
        with store._database.plain() as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            value = connection.execute(f"SELECT {column} FROM {table}").fetchall()[-1][0]
            change = f"UPDATE {table} SET {column} = ? WHERE {column} IS ?"
            for changed in damaged(value):
                connection.execute(change, (changed, value))
                assert found(store), (value, changed)
                connection.execute(change, (value, changed))
        assert not found(store)


def found(store):
    """Whether something is said to be wrong."""
    try:
        return list(store.verify())
    except StoreError:
        return True
