"""Throughput of `rankfold serve` with 64 clients and many adapters, against the same with one merged model.

    python benchmarks/serving_load.py --adapters 1000 --out benchmarks/records/serving_load.json

Both servers run at once and are asked in turns for embeddings of MiniLM; only ratios within a run mean
anything.
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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
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


def free_port() -> int:
    """Return a port that nothing listens on."""
    with listen("127.0.0.1", 0) as free:
        return free.getsockname()[1]


def start_server(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    """Start a server and return when it is ready."""
    command = [sys.executable, "-m", "rankfold", "serve", "--port", str(port), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RANKFOLD_ADMIN_KEY": ADMIN}
    process = subprocess.Popen(command, cwd=folder, env=environment)
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask(port, "GET", "/ready")[0] == 200:
                return process
        if process.poll() is not None:
            sys.exit("the server did not start.")
        time.sleep(0.2)


@contextmanager
def server(folder: Path, *options: str) -> Generator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server; yields its port and its process."""
    port = free_port()
    process = start_server(folder, port, *options)
    try:
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


def measure_throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
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


def settings_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of a benchmark, with those that each benchmark of a server has."""
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--method", default="tlora")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def write_record(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the bars, and write the record if there is a file to write."""
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    record = {
        "command": " ".join(["python", *sys.argv]),
        "created": datetime.now(UTC).date().isoformat(),
        "machine": cpu_name(),
        "settings": settings,
        **result,
    }
    for bar in record["bars"]:
        remark = "" if bar["is_met"] else "  MISSED"
        print(f"{bar['name']}: {bar['value']:.4g} (bound {bar['bound']}){remark}")
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def main() -> None:
    """Measure the throughput and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = settings_of(parser)
    with tempfile.TemporaryDirectory() as folder:
        write_record(options, measure_throughput(options, Path(folder)))


if __name__ == "__main__":
    main()
