"""Half an hour of load on `rankfold serve` while everything that can go wrong does, and what the clients saw.

    python benchmarks/serving_faults.py --minutes 30 --out benchmarks/records/serving_faults.json

Clients ask for embeddings of MiniLM, of short and long texts, by adapters that are drawn by Zipf's law. At
the same time adapters are replaced and deleted over HTTP and by other processes that write to the store and
are killed; clients send nonsense, send slowly, or go away; and in the first third the server itself is killed
twice and started again. Every embedding is compared with those that the versions of its adapter give alone.
Memory and file descriptors are those of the last server, from its warm-up on.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from serving_load import (
    ADMIN,
    WORDS,
    ask,
    free_port,
    make_adapter,
    settings_of,
    start_server,
    version,
    write_record,
)

import rankfold
from rankfold.serve.engine import load_base
from rankfold.store.adapter import SavedAdapter

LENGTHS = (3, 5, 8, 8, 13, 24, 60)
EXPECTED = {200, 404, 429, 504}
"""A deleted adapter is unknown (404); a busy server says so (429) or is too late (504)."""
TOLERANCE = 1e-4
MEMORY_BOUND, DESCRIPTOR_BOUND = 0.05, 8
WRITER = """
import random, sys
import torch
import rankfold
saved, count = torch.load(sys.argv[1], weights_only=False), int(sys.argv[2])
from serving_load import version
draw = random.Random(int(sys.argv[3]))
with rankfold.AdapterStore("adapters.db") as store:
    while True:
        index = draw.randrange(count)
        store.put(f"a{index}", version(saved, 2 * index + draw.randrange(2)), replace=True)
"""


class Judge:
    """Counts of the answers that clients got, and whether their embeddings were right.

    Args:
        saved: An adapter of the kind that is served.
        texts: The texts that are asked for.
    """

    def __init__(self, saved: SavedAdapter, texts: list[str]) -> None:
        self.saved, self.texts = saved, texts
        self.rows = self.wrong = self.cut = 0
        self.statuses: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._outages: list[tuple[float, float]] = []
        loaded = load_base("minilm")
        self._session = rankfold.Session(rankfold.Bank(loaded.model), loaded.processor)
        self._wanted: dict[tuple[int, int], torch.Tensor] = {}

    def judge(self, index: int, rows: list[int], vectors: torch.Tensor) -> None:
        """Compare embeddings [rows, hidden] with those of both versions of an adapter."""
        with self._lock:
            wanted = self._both_versions(index, rows)
            gaps = (wanted - vectors).abs().amax(-1).amin(0)
            self.rows, self.wrong = self.rows + len(rows), self.wrong + int((gaps > TOLERANCE).sum())

    def _both_versions(self, index: int, rows: list[int]) -> torch.Tensor:
        if missing := [row for row in rows if (index, row) not in self._wanted]:
            texts = [self.texts[row] for row in missing]
            both: list[torch.Tensor] = []
            for number in range(2):
                self._session.bank.add(str(number), version(self.saved, 2 * index + number))
                both.append(self._session.embed(texts, [str(number)] * len(texts)))
            pairs = torch.stack(both, 1)
            self._wanted |= {(index, row): pair for row, pair in zip(missing, pairs, strict=True)}
        return torch.stack([self._wanted[index, row] for row in rows], 1)

    def ask(self, *request: Any, **options: Any) -> bytes | None:
        """Return the body of an answer of status 200, else None; count what came."""
        begin = time.monotonic()
        try:
            status, answer = ask(*request, **options)
        except (OSError, http.client.HTTPException):
            # The server may be down already before anybody writes down that it is.
            time.sleep(1)
            with self._lock:
                self.cut += not any(begin <= up and down <= time.monotonic() for down, up in self._outages)
            return None
        with self._lock:
            self.statuses[status] += 1
        return answer if status in (200, 201) else None

    @contextlib.contextmanager
    def outage(self) -> Any:
        """Say that the server is down; requests that meet this may be cut."""
        down = time.monotonic()
        self._outages.append((down, float("inf")))
        yield
        self._outages[-1] = (down, time.monotonic())

    @property
    def unexpected(self) -> int:
        """How many answers had a status that nothing explains."""
        return sum(count for status, count in self.statuses.items() if status not in EXPECTED | {201, 204})


class Traffic:
    """Clients of a server, and those who disturb it.

    Args:
        port: The server's.
        judge: Who counts the answers.
        count: How many adapters there are.
        folder: Where the store is, and where files may be written.
    """

    def __init__(self, port: int, judge: Judge, count: int, folder: Path) -> None:
        self.port, self.judge, self.count, self.folder = port, judge, count, folder
        self.stop = threading.Event()
        # Zipf's law: the first adapters are asked for most.
        self._weights = [1 / (1 + index) for index in range(count)]

    def ask(self, seed: int) -> None:
        """Ask for embeddings, and have them compared."""
        draw = random.Random(seed)
        while not self.stop.is_set():
            (index,) = draw.choices(range(self.count), self._weights)
            rows = draw.sample(range(len(self.judge.texts)), draw.randint(1, 4))
            body = {"model": f"a{index}", "input": [self.judge.texts[row] for row in rows]}
            answer = self.judge.ask(self.port, "POST", "/v1/embeddings", body)
            if answer is not None:
                data = json.loads(answer)["data"]
                self.judge.judge(index, rows, torch.tensor([item["embedding"] for item in data]))

    def administrate(self, seed: int) -> None:
        """Replace and delete adapters over HTTP."""
        draw = random.Random(seed)
        while not self.stop.wait(0.1):
            index = draw.randrange(self.count)
            path = f"/admin/adapters/a{index}"
            if draw.random() < 0.2:
                self.judge.ask(self.port, "DELETE", path, key=ADMIN)
            file = self.folder / f"{secrets.token_hex(4)}.rankfold"
            rankfold.pack_adapter(version(self.judge.saved, 2 * index + draw.randrange(2)), file)
            self.judge.ask(self.port, "PUT", path, file.read_bytes(), key=ADMIN)
            file.unlink()

    def write(self, seed: int) -> None:
        """Have a process replace adapters in the store, and kill it, again and again."""
        draw = random.Random(seed)
        file = self.folder / "kind.pt"
        command = [sys.executable, "-c", WRITER, str(file), str(self.count)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        while not self.stop.is_set():
            writer = subprocess.Popen(
                [*command, str(draw.randrange(1 << 30))], cwd=self.folder, env=environment
            )
            self.stop.wait(10 + 10 * draw.random())
            if writer.poll() is not None:
                self.judge.cut += 1  # it should have been at work
            writer.kill()
            writer.wait()
            self.stop.wait(20)

    def disturb(self, seed: int) -> None:
        """Send nonsense, go away in the middle, or send slowly."""
        draw = random.Random(seed)
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        whole = json.dumps({"model": "a0", "input": self.judge.texts * 2}).encode()
        while not self.stop.wait(0.2):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 5) as client,
            ):
                match draw.randrange(4):
                    case 0:  # goes away before the answer
                        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(whole) + whole)
                    case 1:  # goes away in the middle
                        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(whole) + whole[:50])
                    case 2:  # sends slowly
                        client.sendall(head + b"Content-Length: 20\r\n\r\n")
                        for _ in range(20):
                            client.sendall(b" ")
                            time.sleep(0.02)
                    case _:
                        client.sendall(secrets.token_bytes(2000) + b"\r\n\r\n")
                        _ = client.recv(1000)

    @contextlib.contextmanager
    def flowing(self, clients: int) -> Any:
        """Have all of them at work."""
        jobs: list[tuple[Callable[[int], None], int]] = [
            *((self.ask, seed) for seed in range(clients)),
            *((self.disturb, seed) for seed in range(4)),
            (self.administrate, 0),
            (self.write, 0),
        ]
        threads = [threading.Thread(target=job, args=[seed]) for job, seed in jobs]
        for thread in threads:
            thread.start()
        yield
        self.stop.set()
        for thread in threads:
            thread.join()


def load_with_faults(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what clients saw, and memory and descriptors of the server over time."""
    saved = make_adapter(folder / "first", options.method)
    torch.save(saved, folder / "kind.pt")
    with rankfold.AdapterStore(folder / "adapters.db") as store, store.batch():
        for index in range(options.adapters):
            store.put(f"a{index}", version(saved, 2 * index))
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=length)) for length in LENGTHS for _ in range(4)]
    port, seconds = free_port(), 60 * options.minutes
    serve = ("--model", "minilm", "--store", "adapters.db", "--slots", str(options.slots))
    serve += ("--host-mb", str(options.host_mb))
    process = start_server(folder, port, *serve)
    judge, usage = Judge(saved, texts), []
    traffic, started = Traffic(port, judge, options.adapters, folder), time.monotonic()
    try:
        with traffic.flowing(options.clients):
            for _ in range(2):
                time.sleep(seconds / 9)
                with judge.outage():
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    process = start_server(folder, port, *serve)
            while time.monotonic() < started + seconds:
                time.sleep(min(5.0, seconds / 100))
                usage.append((time.monotonic() - started, *usage_of(process)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    warm = [row for row in usage if row[0] > seconds / 3]
    middle = statistics.median(row[1] for row in warm)
    drift = max(abs(row[1] / middle - 1) for row in warm)
    # Connections come and go; what leaks is open in the quietest moment, too.
    part = len(warm) // 4
    descriptors = min(row[2] for row in warm[-part:]) - min(row[2] for row in warm[:part])
    counts = [
        ("rows by a wrong adapter", judge.wrong, 0),
        ("answers of an unexpected status", judge.unexpected, 0),
        ("requests cut while the server was up, and writers that failed", judge.cut, 0),
        ("resident memory, furthest from its median", drift, MEMORY_BOUND),
        ("file descriptors, growth", descriptors, DESCRIPTOR_BOUND),
    ]
    return {
        "minutes": options.minutes,
        "rows": judge.rows,
        "statuses": {str(status): count for status, count in sorted(judge.statuses.items())},
        "bars": [
            {"name": name, "value": value, "bound": bound, "is_met": value <= bound}
            for name, value, bound in counts
        ],
        "usage": {
            "fields": ["seconds", "resident bytes", "descriptors"],
            "rows": [(round(when), size, files) for when, size, files in usage[:: max(1, len(usage) // 100)]],
        },
    }


def usage_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return the resident bytes and the open files of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{process.pid}/fd"))


def main() -> None:
    """Load the server and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--host-mb", type=int, default=4, help="of adapters in memory, full after minutes")
    options = settings_of(parser)
    with tempfile.TemporaryDirectory() as folder:
        write_record(options, load_with_faults(options, Path(folder)))


if __name__ == "__main__":
    main()
