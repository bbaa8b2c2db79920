"""What a store of many adapters costs beside PEFT's directories: bytes, a get, and loading a thousand.

The adapters have MiniLM's shapes and names and a configuration that PEFT wrote; their values are drawn. Reads
of a small and of a large store take turns, and so do the store and PEFT: whatever else the machine does hits
all of them alike.

    python benchmarks/store.py --out benchmarks/records/store.json
"""

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import peft
import torch
import transformers
from peft.utils.save_and_load import load_peft_weights

import rankfold
from rankfold.models.hardware import cpu_name
from rankfold.progress import quiet_libraries
from rankfold.store.adapter import SavedAdapter
from rankfold.store.tensors import bytes_of

LAYERS = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
METHODS = {"tlora": {"r": 8}, "relayed_lora": {"r": 8, "k": 8}}
SMALL = 1_000
BATCH = 1_000
READS = 3_000
ROUNDS = 3


def pattern(method: str, folder: Path) -> SavedAdapter:
    """Return an adapter as PEFT saves it on MiniLM's layers."""
    base = transformers.BertModel(transformers.BertConfig(**LAYERS, vocab_size=99))
    config = rankfold.config(
        method, target_modules=["query", "value"], task_type="SEQ_CLS", **METHODS[method]
    )
    config.base_model_name_or_path = "minilm"
    config.task_type = None
    with quiet_libraries():
        peft.get_peft_model(base, config).save_pretrained(folder)
    return rankfold.open_adapter(folder)


def drawn(like: SavedAdapter, count: int) -> Iterator[tuple[str, SavedAdapter]]:
    """Yield adapters with other values, and another seed in the configuration."""
    draw = torch.Generator().manual_seed(0)
    numbers = like.learned_bytes // 4
    for index in range(count):
        values = bytearray(bytes_of(torch.randn(numbers, generator=draw)))
        config = like.config.replace(b'"seed": 0', b'"seed": %d' % random.randrange(10**6))
        yield f"customers/{index:06d}", SavedAdapter(config, like.layout, like.layout.cutter.cut(values))


def fill(path: Path, like: SavedAdapter, count: int) -> dict[str, float]:
    """Put adapters into a new store; return what it takes on the disk."""
    begin = time.perf_counter()
    with rankfold.AdapterStore(path) as store:
        adapters = drawn(like, count)
        for first in range(0, count, BATCH):
            with store.batch():
                for index in range(first, min(first + BATCH, count)):
                    name, saved = next(adapters)
                    tags, metrics = {"customer": str(index % 997)}, {"accuracy": random.random()}
                    store.put(name, saved, tags=tags, metrics=metrics)
        learned = store.stats().learned_bytes
    seconds = time.perf_counter() - begin
    size = path.stat().st_size
    return {
        "records": count,
        "learned_bytes": learned,
        "file_bytes": size,
        "bytes_beside_a_record": (size - learned) / count,
        "share_of_allowed": size / (1.10 * learned + 400 * count),
        "seconds_a_put": seconds / count,
    }


def read_times(small: Path, large: Path, count: int) -> dict[str, dict[str, float]]:
    """Return the median and the 99th percentile of a random get of each store, and their ratios.

    It is processor time, in seconds: what else the machine does would decide over the slowest hundredth.
    """
    times: dict[str, list[float]] = {"small": [], "large": []}
    with rankfold.AdapterStore(small, "read") as one, rankfold.AdapterStore(large, "read") as other:
        for _ in range(READS):
            for name, store, records in (("small", one, SMALL), ("large", other, count)):
                chosen = f"customers/{random.randrange(records):06d}"
                begin = time.process_time()
                store.get(chosen)
                times[name].append(time.process_time() - begin)
    found = {
        name: {"p50": statistics.median(each), "p99": statistics.quantiles(each, n=100)[98]}
        for name, each in times.items()
    }
    found["ratio"] = {key: found["large"][key] / found["small"][key] for key in ("p50", "p99")}
    return found


def load_times(small: Path, folder: Path) -> dict[str, float]:
    """Return the seconds to read all adapters of the small store, and to read their directories with PEFT."""
    with rankfold.AdapterStore(small, "read") as store:
        names = [record.name for record in store.list()]
        for name in names:
            store.get(name).write(folder / name)

        def from_store() -> object:
            return dict(store.get_many(names))

        def from_directories() -> object:
            return {name: from_directory(str(folder / name)) for name in names}

        times: dict[str, list[float]] = {"store": [], "peft": []}
        for _ in range(ROUNDS):
            for name, read in (("store", from_store), ("peft", from_directories)):
                times[name].append(timed(read))
    seconds = {name: min(each) for name, each in times.items()}
    return {**seconds, "ratio": seconds["store"] / seconds["peft"]}


def from_directory(folder: str) -> tuple[peft.PeftConfig, dict[str, torch.Tensor]]:
    """Return what PEFT reads of an adapter's directory."""
    return peft.PeftConfig.from_pretrained(folder), load_peft_weights(folder, device="cpu")


def timed(action: Callable[[], object]) -> float:
    """Return how long something takes whose result is kept meanwhile, in seconds."""
    begin = time.perf_counter()
    kept = action()
    seconds = time.perf_counter() - begin
    del kept
    return seconds


def measure(method: str, count: int, folder: Path) -> dict[str, object]:
    """Measure the stores of one method."""
    folder.mkdir()
    like = pattern(method, folder / "pattern")
    fill(folder / "small.db", like, SMALL)
    size = fill(folder / "large.db", like, count)
    reads = read_times(folder / "small.db", folder / "large.db", count)
    loads = load_times(folder / "small.db", folder / "directories")
    share, beside = size["share_of_allowed"], size["bytes_beside_a_record"]
    print(f"{method}: file {share:.3f} of what is allowed, {beside:.0f} bytes beside each adapter")
    median, ratio = reads["large"]["p50"] * 1e6, reads["ratio"]
    print(f"{method}: get {median:.0f} us, ratios {ratio['p50']:.2f} and {ratio['p99']:.2f}")
    print(f"{method}: loading {loads['ratio']:.3f} of PEFT's time")
    return {"options": METHODS[method], "size": size, "get_seconds": reads, "load_1000_seconds": loads}


def main() -> None:
    """Measure both methods and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tlora", type=int, default=100_000, help="how many TLoRA adapters")
    parser.add_argument("--relayed", type=int, default=20_000, help="how many relayed adapters")
    parser.add_argument(
        "--folder", type=Path, help="where the stores are made; a temporary folder if not given"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    libraries = {each.__name__: each.__version__ for each in (rankfold, torch, peft, transformers)}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        counts = {"tlora": arguments.tlora, "relayed_lora": arguments.relayed}
        results = {method: measure(method, count, Path(folder) / method) for method, count in counts.items()}
    record = {
        "command": ["python", *sys.argv],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **libraries},
        "hardware": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "small": SMALL,
        "methods": results,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
