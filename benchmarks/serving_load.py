"""Load on `rankfold serve`: 64 clients, many adapters, against the same server with one merged model.

Two parts, each a subcommand:

    python benchmarks/serving_load.py throughput --adapters 1000 --out benchmarks/records/serving_load.json
    python benchmarks/serving_load.py faults --minutes 30 --out benchmarks/records/serving_faults.json

`throughput` runs both servers and asks them in turns for embeddings of MiniLM; only ratios within a run mean
anything. `faults` sends Zipf traffic while adapters are replaced and deleted, clients are slow or go away,
and requests are wrong; every embedding is compared with those that the adapter's versions give alone.
"""

import argparse
import contextlib
import dataclasses
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
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch

import rankfold
from rankfold.models.hardware import cpu_name
from rankfold.progress import quiet_libraries
from rankfold.serve.engine import load_base
from rankfold.serve.http.run import listen
from rankfold.store.adapter import SavedAdapter
from rankfold.store.saved import open_adapter

WORDS = [
    "markets",
    "rose",
    "after",
    "the",
    "bank",
    "cut",
    "rates",
    "while",
    "fans",
    "cheered",
    "a",
    "late",
    "goal",
    "in",
    "the",
    "cup",
    "final",
    "again",
]
ADMIN = secrets.token_hex(16)
BAR = 0.85


def make_adapter(folder: Path, method: str) -> SavedAdapter:
    """Return an adapter of MiniLM on query and value, as it is saved."""
    config = rankfold.config(
        method,
        r=8,
        target_modules=["query", "value"],
        task_type="SEQ_CLS",
        modules_to_save=[],
        init_weights=False,
    )
    with quiet_libraries():
        peft.get_peft_model(load_base("minilm").model, config).save_pretrained(folder)
    return open_adapter(folder)


def version(saved: SavedAdapter, seed: int) -> SavedAdapter:
    """Return another adapter of the same kind, with random values."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {key: 0.05 * torch.randn(value.shape, generator=draw) for key, value in saved.tensors.items()}
    return dataclasses.replace(saved, tensors=tensors)


@contextmanager
def server(folder: Path, *options: str) -> Generator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server; yields its port and its process."""
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rankfold", "serve", "--port", str(port), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RANKFOLD_ADMIN_KEY": ADMIN}
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        while True:
            with contextlib.suppress(OSError):
                if ask(port, "GET", "/ready")[0] == 200:
                    break
            if process.poll() is not None:
                sys.exit("the server did not start.")
            time.sleep(0.2)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str = "none",
    connection: http.client.HTTPConnection | None = None,
) -> tuple[int, bytes]:
    """Return the status and the body of an answer."""
    own = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        own.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers)
        answer = own.getresponse()
        return answer.status, answer.read()
    finally:
        if connection is None:
            own.close()


def texts_of(count: int, words: int) -> list[str]:
    """Return random texts."""
    return [" ".join(random.Random(seed).choices(WORDS, k=words)) for seed in range(count)]


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(port: int, clients: int, seconds: float, names: Sequence[str], texts: Sequence[str]) -> float:
    """Return the answers a second that clients get, each asking for one text at a time."""
    end = time.monotonic() + seconds

    def one_client(seed: int) -> int:
        draw, count = random.Random(seed), 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < end:
            body = {"model": draw.choice(names), "input": draw.choice(texts), "encoding_format": "base64"}
            status, answer = ask(port, "POST", "/v1/embeddings", body, connection=connection)
            if status != 200:
                sys.exit(f"status {status}: {answer!r}")
            count += 1
        connection.close()
        return count

    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        total = sum(pool.map(one_client, range(clients)))
    return total / (time.monotonic() - started)


def run_throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the throughput of many adapters beside that of one merged model."""
    saved = make_adapter(folder / "first", options.method)
    with rankfold.AdapterStore(folder / "adapters.db") as store, store.batch():
        for index in range(options.adapters):
            store.put(f"a{index}", version(saved, index))
    loaded = load_base("minilm")
    with quiet_libraries():
        merged = peft.PeftModel.from_pretrained(loaded.model, folder / "first").merge_and_unload()
        merged.save_pretrained(folder / "merged")
        loaded.processor.save_pretrained(folder / "merged")
    names, texts = [f"a{index}" for index in range(options.adapters)], texts_of(256, options.words)
    rates: dict[str, list[float]] = {"adapters": [], "merged": []}
    costs: dict[str, list[float]] = {"adapters": [], "merged": []}
    slots = ("--slots", str(options.slots))
    with (
        server(folder, "--model", "minilm", "--store", "adapters.db", *slots) as many,
        server(folder, "--model", "merged") as one,
    ):
        cases = {"adapters": (many, names), "merged": (one, ["merged"])}
        for turn in range(options.rounds + 1):
            for case in random.Random(turn).sample(sorted(cases), 2):
                (port, process), models = cases[case]
                before = cpu_seconds(process)
                rate = throughput(port, options.clients, options.seconds, models, texts)
                if turn:  # the first one warms up
                    rates[case].append(rate)
                    costs[case].append((cpu_seconds(process) - before) / (rate * options.seconds))
    by_turn = [many / one for many, one in zip(rates["adapters"], rates["merged"], strict=True)]
    cost_by_turn = [one / many for many, one in zip(costs["adapters"], costs["merged"], strict=True)]
    value = statistics.median(by_turn)
    return {
        "rates": rates,
        "cpu_seconds_per_request": costs,
        "cpu_ratio": statistics.median(cost_by_turn),
        "bars": [{"name": "throughput x merged", "value": value, "bound": BAR, "is_met": value >= BAR}],
    }


class Traffic:
    """Clients and an administrator who disturb a server, and the counts of what they saw.

    Args:
        port: The server's.
        saved: The kind of the adapters.
        count: How many adapters there are.
        texts: The texts that are asked for.
    """

    def __init__(self, port: int, saved: SavedAdapter, count: int, texts: Sequence[str]) -> None:
        self.port, self.saved, self.count, self.texts = port, saved, count, texts
        self.statuses: Counter[int] = Counter()
        self.rows = self.wrong = 0
        self.stop, self._lock = threading.Event(), threading.Lock()
        loaded = load_base("minilm")
        self._session = rankfold.Session(rankfold.Bank(loaded.model), loaded.processor)
        self._wanted: dict[int, torch.Tensor] = {}
        # Zipf: the first adapters are asked for most.
        self._weights = [1 / (1 + index) for index in range(count)]

    def packed(self, index: int, number: int, folder: Path) -> bytes:
        """Return one of the two versions of an adapter as a packed file."""
        file = folder / f"{secrets.token_hex(4)}.rankfold"
        rankfold.pack_adapter(version(self.saved, 2 * index + number), file)
        return file.read_bytes()

    def wanted(self, index: int) -> torch.Tensor:
        """Return the embeddings of all texts by both versions of an adapter, [2, texts, hidden]."""
        with self._lock:
            if index not in self._wanted:
                for number in range(2):
                    self._session.bank.add(str(number), version(self.saved, 2 * index + number))
                both = [self._session.embed(self.texts, [str(n)] * len(self.texts)) for n in range(2)]
                self._wanted[index] = torch.stack(both)
            return self._wanted[index]

    def ask(self, seed: int) -> None:
        """Ask for embeddings until the end, and compare them."""
        draw = random.Random(seed)
        while not self.stop.is_set():
            (index,) = draw.choices(range(self.count), self._weights)
            rows = draw.sample(range(len(self.texts)), draw.randint(1, 4))
            body = {"model": f"a{index}", "input": [self.texts[row] for row in rows]}
            status, answer = ask(self.port, "POST", "/v1/embeddings", body)
            self.count_status(status)
            if status == 200:
                vectors = torch.tensor([item["embedding"] for item in json.loads(answer)["data"]])
                gaps = (self.wanted(index)[:, rows] - vectors).abs().amax(-1).amin(0)
                with self._lock:
                    self.rows, self.wrong = self.rows + len(rows), self.wrong + int((gaps > 1e-4).sum())

    def count_status(self, status: int) -> None:
        """Count an answer."""
        with self._lock:
            self.statuses[status] += 1

    def administrate(self, folder: Path) -> None:
        """Replace and delete adapters until the end."""
        draw, number = random.Random(0), 0
        while not self.stop.wait(0.05):
            index, number = draw.randrange(self.count), 1 - number
            path = f"/admin/adapters/a{index}"
            if draw.random() < 0.2:
                self.count_status(ask(self.port, "DELETE", path, key=ADMIN)[0])
            self.count_status(ask(self.port, "PUT", path, self.packed(index, number, folder), key=ADMIN)[0])

    def disturb(self, seed: int) -> None:
        """Send wrong requests, go away in the middle, or send slowly, until the end."""
        draw = random.Random(seed)
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        whole = json.dumps({"model": "a0", "input": self.texts * 20}).encode()
        while not self.stop.wait(0.1):
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


def run_faults(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return counts of wrong rows and statuses, and the memory of the server over time."""
    saved = make_adapter(folder / "first", options.method)
    with rankfold.AdapterStore(folder / "adapters.db") as store, store.batch():
        for index in range(options.adapters):
            store.put(f"a{index}", version(saved, 2 * index))
    memory: list[tuple[float, int, int]] = []
    slots = ("--slots", str(options.slots))
    with server(folder, "--model", "minilm", "--store", "adapters.db", *slots) as (port, process):
        traffic = Traffic(port, saved, options.adapters, texts_of(16, options.words))
        jobs: list[tuple[Callable[[Any], None], Any]] = [
            *((traffic.ask, seed) for seed in range(options.clients)),
            *((traffic.disturb, seed) for seed in range(4)),
            (traffic.administrate, folder),
        ]
        threads = [threading.Thread(target=job, args=[value]) for job, value in jobs]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        while time.monotonic() < started + 60 * options.minutes:
            time.sleep(min(5.0, 6 * options.minutes))
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            memory.append((time.monotonic() - started, pages * os.sysconf("SC_PAGE_SIZE"), files))
        traffic.stop.set()
        for thread in threads:
            thread.join()
    warm = memory[len(memory) // 3 :]
    growth = warm[-1][1] / warm[0][1] - 1
    return {
        "rows": traffic.rows,
        "statuses": dict(traffic.statuses),
        "memory": memory,
        "bars": [
            {"name": "wrong rows", "value": traffic.wrong, "bound": 0, "is_met": traffic.wrong == 0},
            {"name": "growth of memory", "value": growth, "bound": 0.05, "is_met": growth <= 0.05},
            {
                "name": "status 500",
                "value": traffic.statuses[500],
                "bound": 0,
                "is_met": not traffic.statuses[500],
            },
        ],
    }


def main() -> None:
    """Run one part and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("throughput", "faults"):
        part = parts.add_parser(name)
        part.add_argument("--adapters", type=int, default=1000)
        part.add_argument("--clients", type=int, default=64)
        part.add_argument("--slots", type=int, default=256)
        part.add_argument("--method", default="tlora")
        part.add_argument("--words", type=int, default=24)
        part.add_argument("--out", type=Path)
    parts.choices["throughput"].add_argument("--rounds", type=int, default=5)
    parts.choices["throughput"].add_argument("--seconds", type=float, default=10.0)
    parts.choices["faults"].add_argument("--minutes", type=float, default=1.0)
    options = parser.parse_args()
    run = {"throughput": run_throughput, "faults": run_faults}[options.part]
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    record = {"machine": cpu_name(), "settings": settings, **result}
    for bar in record["bars"]:
        print(
            f"{bar['name']}: {bar['value']:.4g} (bound {bar['bound']}){'' if bar['is_met'] else '  MISSED'}"
        )
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
