"""What other processes do with a store: short of room, without rights, killed, or side by side."""

import itertools
import json
import os
import random
import resource
import time

from rankfold import AdapterStore, SpecError, StoreError
from tests.support.killing import PROCESSES
from tests.support.saved import make_adapter, same

NOBODY = 65534
ROOM_BYTES = 300_000


def told_by(work, *arguments):
    """Do something in another process and return the last thing it tells."""
    receive, send = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=work, args=(send, *arguments))
    child.start()
    send.close()
    told = receive.recv()
    child.join()
    return told


def put_with_little_room(send, path, name):
    """Put what does not fit; the system refuses to let a file grow, as a full disk does."""
    with AdapterStore(path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, ROOM_BYTES))
        send.send(_what_happens(lambda: store.put(name, make_adapter(2, size=90_000), replace=True)))


def put_as_nobody(send, path, mode):
    """Put as a user who may write neither file nor folder; the folders above may be root's alone."""
    os.chdir(path.parent)
    if os.getuid() == 0:
        for folder in path.parents[:-1]:
            folder.chmod(folder.stat().st_mode | 0o011)
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    send.send(_what_happens(lambda: AdapterStore(path, mode).put("b", make_adapter(2))))


def read_as_nobody(send, path):
    """Read as that user."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with AdapterStore(path, "read") as store:
        send.send([record.name for record in store.list()])


def put_in_a_fork(send, path):
    """Put from a process and from its child, and tell the names."""
    with AdapterStore(path) as store:
        store.put("parent", make_adapter(1))
        child = os.fork()
        if child == 0:
            store.put("child", make_adapter(2))
            os._exit(0)
        os.waitpid(child, 0)
        send.send(", ".join(record.name for record in store.list()))


def _what_happens(action):
    try:
        action()
    except StoreError as error:
        return str(error)
    return "it was written"


def put_for_ever(send, path, first):
    """Put adapters, tell each name when it is there, and leave garbage behind."""
    with AdapterStore(path) as store:
        for seed in itertools.count(first):
            store.put(f"kept/{seed}", make_adapter(seed, size=seed % 700))
            send.send(seed)
            store.put("other", make_adapter(seed, size=400), replace=True)


def collect_for_ever(send, path, first):
    """Put, delete and collect, and tell each seed that is to stay."""
    with AdapterStore(path) as store:
        for seed in itertools.count(first):
            store.put(f"kept/{seed}", make_adapter(seed, size=seed % 300))
            send.send(seed)
            store.put(f"gone/{seed}", make_adapter(seed + 1, size=5000))
            store.delete(f"gone/{seed}")
            store.gc()


def bring_up_to_date(send, path, first):
    """Open a store of the first version."""
    send.send(first)
    AdapterStore(path).close()


def work_and_kill(work, path, first, *, after, then_wait):
    """Start work, kill it with signal 9, and return what it told.

    Args:
        work: One of the functions above.
        path: The store.
        first: The first seed of its adapters.
        after: How many things it tells before it may be killed.
        then_wait: At most how many seconds it goes on after that.
    """
    receive, send = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=work, args=(send, path, first))
    child.start()
    send.close()
    told = []
    try:
        told += [receive.recv() for _ in range(after)]
        child.join(then_wait)
        child.kill()
        while True:
            told.append(receive.recv())
    except EOFError:
        child.join()
    return told


def write_for(send, path, writer, seconds):
    """Put, replace and delete adapters of its own, and tell which are there in the end."""
    draw, mine = random.Random(writer), {}
    end = time.monotonic() + seconds
    with AdapterStore(path) as store:
        while time.monotonic() < end:
            name, seed = f"{writer}/{draw.randrange(20)}", draw.randrange(1000)
            if name in mine and draw.random() < 0.3:
                store.delete(name)
                del mine[name]
            else:
                store.put(name, labelled(seed), replace=True)
                mine[name] = seed
            if draw.random() < 0.02:
                store.gc()
    send.send(mine)


def read_for(send, path, reader, seconds):
    """Read whatever is there, and tell how much was read and what was wrong."""
    draw, count, wrong = random.Random(reader), 0, []
    end = time.monotonic() + seconds
    with AdapterStore(path, "read") as store:
        while time.monotonic() < end:
            names = [record.name for record in store.list()]
            for name in draw.sample(names, min(5, len(names))):
                try:
                    saved = store.get(name)
                except SpecError:  # deleted since
                    continue
                count += 1
                if not same(saved, labelled(json.loads(saved.config)["note"])):
                    wrong.append(name)
    send.send((count, wrong))


def labelled(seed):
    """Return an adapter whose configuration says its seed."""
    return make_adapter(seed, size=seed, note=seed)


def side_by_side(work, path, seconds, *, count):
    """Start the same work in several processes; return a function that waits for what they tell."""
    children = []
    for index in range(count):
        receive, send = PROCESSES.Pipe(duplex=False)
        child = PROCESSES.Process(target=work, args=(send, path, index, seconds))
        child.start()
        send.close()
        children.append((child, receive))

    def results():
        told = [receive.recv() for _, receive in children]
        for child, _ in children:
            child.join()
        return told

    return results
