"""How often an adapter is in a slot or in memory, under Zipf's law: formula, simulation and a real bank.

The simulation keeps names only. It is checked by a real bank of a tiny model, which answers the same requests
and must count the same hits and loads, and the formula is checked by the simulation.

    python benchmarks/scale.py --out benchmarks/records/scale.json
"""

import argparse
import copy
import json
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers import BertConfig, BertModel

import rankfold
from benchmarks.serving import METHODS, fill_store, saved_adapter, zipf

ADAPTERS, EXPONENTS = (10_000, 1_000_000), (0.8, 1.0, 1.2)
SLOTS = (64, 256, 1024, 4096, 16_384)
REPLICAS = (1, 2, 4, 8, 16)
REQUESTS = 200_000


@dataclass
class Counts:
    """Requests, and where their adapters were: in a slot, in memory, or in the store alone."""

    requests: int = 0
    slot_hits: int = 0
    host_hits: int = 0
    loads: int = 0


def simulate(requests: Iterable[int], slots: int, host: int) -> Counts:
    """Return the counts of a bank that answers requests one after another.

    Args:
        requests: The adapter of each.
        slots: Of the bank.
        host: How many adapters its memory has beside the slots.
    """
    placed, cached, counts = OrderedDict[int, None](), OrderedDict[int, None](), Counts()
    for name in requests:
        counts.requests += 1
        counts.slot_hits += name in placed
        if name in cached:
            cached.move_to_end(name)
        elif name not in placed:
            counts.loads += 1
            cached[name] = None
            if len(cached) > host:
                cached.popitem(last=False)
        placed[name] = None
        placed.move_to_end(name)
        if len(placed) > slots:
            placed.popitem(last=False)
    counts.host_hits = counts.requests - counts.slot_hits - counts.loads
    return counts


def predicted_hit_rate(adapters: int, exponent: float, places: int) -> float:
    """Return the share of requests that a cache of the least recently used answers (Che's approximation).

    An adapter with the share p of all requests is in the cache if one of the last t requests was for it; that
    has the probability 1 - exp(-p t); t is such that these sum to the number of places.
    """
    weights = torch.arange(1, adapters + 1, dtype=torch.float64) ** -exponent
    shares = weights / weights.sum()
    if places >= adapters:
        return 1.0
    low, high = 0.0, 1e12
    for _ in range(100):
        middle = (low * high) ** 0.5 if low > 1 else (low + high) / 2
        if float((1 - torch.exp(-shares * middle)).sum()) < places:
            low = middle
        else:
            high = middle
    return float((shares * (1 - torch.exp(-shares * high))).sum())


def hit_rate(requests: list[int], places: int) -> float:
    """Return the share of the later half of requests that a cache answers; the first half fills it."""
    half = len(requests) // 2
    filled = simulate(requests[:half], places, 0).slot_hits
    return (simulate(requests, places, 0).slot_hits - filled) / (len(requests) - half)


def curves() -> list[dict[str, Any]]:
    """Return the hit rate of slots for numbers of adapters and slots, by formula and by simulation."""
    rows: list[dict[str, Any]] = []
    for adapters in ADAPTERS:
        for exponent in EXPONENTS:
            requests = zipf(adapters, REQUESTS, exponent)
            for slots in SLOTS:
                if slots < adapters:
                    row = {"adapters": adapters, "exponent": exponent, "slots": slots}
                    row["predicted"] = round(predicted_hit_rate(adapters, exponent, slots), 4)
                    row["simulated"] = round(hit_rate(requests, slots), 4)
                    rows.append(row)
    return rows


def replicas(adapters: int = 1_000_000, slots: int = 256) -> list[dict[str, Any]]:
    """Return the hit rate of several replicas, if a name always goes to one of them, or to any."""
    requests, rows = zipf(adapters, REQUESTS), list[dict[str, Any]]()
    for count in REPLICAS:
        own = [[name for name in requests if crc32(b"%d" % name) % count == part] for part in range(count)]
        by_name = sum(hit_rate(part, slots) * len(part) for part in own) / len(requests)
        by_turn = sum(hit_rate(requests[part::count], slots) for part in range(count)) / count
        predicted = predicted_hit_rate(adapters, 1.0, count * slots)
        rows.append({
            "replicas": count, "adapters": adapters, "slots": slots, "by_name": round(by_name, 4),
            "by_turn": round(by_turn, 4), "predicted_by_name": round(predicted, 4),
        })  # fmt: skip
    return rows


def check(adapters: int = 400, requests: int = 3000, slots: int = 32, host: int = 100) -> dict[str, Any]:
    """Let a real bank and the simulation answer the same requests, and return both counts."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    base = BertModel(BertConfig(vocab_size=64, **sizes)).eval()
    saved = saved_adapter(copy.deepcopy(base), *METHODS["core"])
    drawn = zipf(adapters, requests)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        fill_store(path, saved, adapters)
        with rankfold.Bank(base, path) as one:
            with one.batch(["a0"]):
                pass
            bytes_each = one.stats.host_bytes
        with rankfold.Bank(base, path, slots=slots, host_bytes=host * bytes_each) as bank:
            for index in drawn:
                with bank.batch([f"a{index}"]):
                    pass
            stats = bank.stats
    loads, rows = stats.loads, stats.rows
    real = Counts(rows, stats.slot_hits, rows - stats.slot_hits - loads, loads)
    return {"bank": asdict(real), "simulation": asdict(simulate(drawn, slots, host))}


def main() -> None:
    """Compute all and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record = {
        "command": " ".join(["python", "benchmarks/scale.py", *sys.argv[1:]]),
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "check": check(),
        "requests": REQUESTS,
        "curves": curves(),
        "replicas": replicas(),
    }
    text = json.dumps(record, indent=2) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
