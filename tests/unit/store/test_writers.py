"""Writers of one store take turns, and a new store appears with all its tables or not at all."""

import multiprocessing
import os
import random
import signal
import threading
import time
from itertools import groupby

import pytest

from rankfold import AdapterStore
from rankfold.errors import NoStoreError, RankfoldError, StoreError
from rankfold.store.database import Database
from tests.support.stored import make_adapter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere there are no turns")


def test_writer_that_waits_comes_before_the_next_of_the_one_that_has_the_lock(tmp_path):
    """However often another writes, it does not pass one who waits again and again."""
    file = tmp_path / "store.db"
    AdapterStore(file).close()
    order, waiting = [], threading.Event()

    def write(name):
        database = Database(file, "write", 30.0)
        for _ in range(8):
            waiting.set()
            with database.write():
                order.append(name)
                time.sleep(0.02)
        database.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = {name: len(order) - 1 - order[::-1].index(name) for name in "ab"}
    contested = order[max(order.index("a"), order.index("b")) : min(last.values())]
    assert max((len(list(group)) for _, group in groupby(contested)), default=1) <= 2


def test_busy_store_is_an_error_after_the_wait(tmp_path):
    AdapterStore(tmp_path / "store.db").close()
    first, second = (Database(tmp_path / "store.db", "write", 0.05) for _ in range(2))
    with first.write(), pytest.raises(StoreError, match="is busy"), second.write():
        pass
    with second.write():
        pass
    first.close()
    second.close()


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
@pytest.mark.parametrize("mode", ["create", "write", "read"])
def test_file_that_is_no_store_is_never_made_one(content, mode, tmp_path):
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(NoStoreError, match="; "):
        AdapterStore(tmp_path / "mine", mode)
    assert (tmp_path / "mine").read_bytes() == content


def test_store_with_damaged_names_is_refused_with_a_remedy(tmp_path):
    """Whichever byte of the schema is flipped, the error is ours and names the file."""
    with AdapterStore(tmp_path / "store.db") as store:
        store.put("a", make_adapter())
    content = (tmp_path / "store.db").read_bytes()
    draw = random.Random(0)
    for number in range(150):
        damaged = bytearray(content)
        damaged[draw.randrange(16384)] ^= 0x80
        file = tmp_path / f"{number}.db"
        file.write_bytes(damaged)
        try:
            with AdapterStore(file, "read") as store:
                list(store.list())
        except RankfoldError as error:
            if str(file) not in str(error) or "; " not in str(error):
                pytest.fail(str(error))
        for leftover in tmp_path.glob(f"{number}.db*"):
            leftover.unlink()


def _create(file, barrier, number):
    barrier.wait()
    with AdapterStore(file) as store:
        store.put(str(number), make_adapter(number))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_store_made_by_several_processes_at_once_has_the_adapters_of_all(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    children = [
        context.Process(target=_create, args=(tmp_path / "store.db", barrier, number)) for number in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert not [path.name for path in tmp_path.iterdir() if not path.name.startswith("store.db")]
    with AdapterStore(tmp_path / "store.db", "read") as store:
        assert sorted(record.name for record in store.list()) == ["0", "1", "2", "3"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_creation_that_is_killed_leaves_no_store(tmp_path, monkeypatch):
    child = os.fork()
    if not child:
        monkeypatch.setattr(Database, "_migrate", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        AdapterStore(tmp_path / "store.db")
        os._exit(0)
    os.waitpid(child, 0)
    assert not (tmp_path / "store.db").exists()
    AdapterStore(tmp_path / "store.db").close()
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]
