"""Serving many adapters in one batch against one model with an adapter merged into its weights.

Every part runs its cases in turns, in a random order, on one thread, and compares processor times: whatever
else the machine does hits all of them alike, and only the ratios within one run mean anything. The bars are
those that the project has set itself. The part `server` only copies the bars that `serving_load.py` and
`serving_faults.py` have recorded.

    python benchmarks/serving.py --out benchmarks/records/serving.json
"""

import argparse
import copy
import dataclasses
import gc
import json
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel

import rankfold
from rankfold.models.base import resolve_model
from rankfold.models.hardware import cpu_name
from rankfold.progress import quiet_libraries
from rankfold.store.adapter import SavedAdapter
from rankfold.store.database import Database
from rankfold.store.loading import load_adapter
from rankfold.store.record import digest_of
from rankfold.store.rows import select
from rankfold.store.saved import open_adapter
from rankfold.store.sharing import put_part
from rankfold.store.store import AdapterStore

ROWS, TOKENS = 32, 32
RECORDS = Path(__file__).parent / "records"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("lora", {"r": 8}),
    "core": ("tlora", {"r": 8}),
    "routed": ("effilora", {"r": 8, "heads": 4}),
}
QUERY_VALUE = ["query", "value"]

Bar = dict[str, Any]


def bar(name: str, value: float, bound: float) -> Bar:
    """Return a measured value beside its bound, which it should not be above."""
    print(f"{name}: {value:.4g} (at most {bound:g}){'' if value <= bound else '  MISSED'}", flush=True)
    return {"name": name, "value": value, "bound": bound, "is_met": value <= bound}


def minilm() -> nn.Module:
    """Return the embedded encoder."""
    return AutoModel.from_pretrained(resolve_model("minilm").loadable()).eval()


def saved_adapter(base: nn.Module, method: str, options: dict[str, Any]) -> SavedAdapter:
    """Return an adapter of a method, as it is saved."""
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        config = rankfold.config(method, **{"target_modules": QUERY_VALUE, "init_weights": False, **options})
        peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(folder)
        return open_adapter(folder)


def variant(saved: SavedAdapter, seed: int, *, std: float = 0.05) -> SavedAdapter:
    """Return another adapter of the same kind, with random values."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {key: std * torch.randn(value.shape, generator=draw) for key, value in saved.tensors.items()}
    return dataclasses.replace(saved, tensors=tensors)


def fill_store(path: Path, saved: SavedAdapter, count: int) -> None:
    """Write adapters of one kind into a store."""
    with AdapterStore(path) as store, store.batch():
        for index in range(count):
            store.put(f"a{index}", variant(saved, index))


def fill_large_store(path: Path, saved: SavedAdapter, count: int) -> None:
    """Write many adapters of one kind with random numbers into a store, by the rows that `put` writes.

    One adapter is put, and the rows of the others are made from its rows: what is the same for all of a kind
    is not computed again.
    """
    layout_bytes = sum(tensor.nbytes for tensor in saved.tensors.values())
    with AdapterStore(path) as store:
        store.put("a0", variant(saved, 0))
    database = Database(path, "write", 30)
    with database.plain() as connection:
        connection.execute("PRAGMA synchronous = OFF")
    for first in range(1, count, 20_000):
        span = range(first, min(first + 20_000, count))
        values = torch.randn(len(span), layout_bytes // 4, generator=torch.Generator().manual_seed(first))
        with database.write() as connection:
            copy_rows(connection, span, [row.tobytes() for row in (0.05 * values).numpy()])
    database.close()


def copy_rows(connection: Any, span: range, parts: Sequence[bytes]) -> None:
    """Write records with other numbers and names beside the first one of a store."""
    (record,) = select(connection, "records.name = ?", ["a0"], limit=1)
    blobs = connection.execute(
        "SELECT outline, template, config FROM records JOIN kinds ON kinds.id = kind WHERE name = 'a0'"
    ).fetchone()
    columns = "kind, format, created, config, config_bytes, bytes"
    ((position,),) = connection.execute("SELECT position FROM uses WHERE record = 1").fetchall()
    for index, data in zip(span, parts, strict=True):
        part, digest = put_part(connection, data)
        name = f"a{index}"
        own = dataclasses.replace(record, name=name)
        row = connection.execute(
            f"INSERT INTO records (name, digest, {columns}) SELECT ?, ?, {columns} FROM records WHERE id = 1",
            (name, bytes.fromhex(digest_of(own, blobs, [(position, digest)]))),
        ).lastrowid
        connection.execute(
            "INSERT INTO uses (record, position, part) VALUES (?, ?, ?)", (row, position, part)
        )


def batch(rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Return a batch of random tokens."""
    ids = torch.randint(1000, 20000, (rows, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def interleave(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median ratio of each case's processor time to that of `merged` in the same round."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name in random.sample(list(cases), len(cases)):
            start = time.process_time()
            cases[name]()
            times[name].append(time.process_time() - start)
    return {
        name: statistics.median(
            own / merged for own, merged in zip(times[name], times["merged"], strict=True)
        )
        for name in cases
        if name != "merged"
    }


def plain(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Return a function that runs a model: one with an adapter merged into its weights costs the same."""

    def run() -> object:
        with torch.inference_mode():
            return model(**inputs)

    return run


def measure_forward(base: nn.Module, counts: Sequence[int], rounds: int) -> list[Bar]:
    """Measure batches of distinct adapters, all in slots."""
    return [measured for form in METHODS for measured in measure_form(base, form, counts, rounds)]


def measure_form(base: nn.Module, form: str, counts: Sequence[int], rounds: int) -> list[Bar]:
    """Measure batches of distinct adapters of one form."""
    inputs = batch()
    cases: dict[str, Callable[[], object]] = {"merged": plain(base, inputs)}
    saved = saved_adapter(base, *METHODS[form])
    for count in counts:
        bank = rankfold.Bank(base, slots=count)
        names = [f"a{index}" for index in range(count)]
        for index, name in enumerate(names):
            bank.add(name, variant(saved, index))
            with bank.batch([name]):  # into its slot
                pass
        session = rankfold.Session(bank)

        def run(session: Any = session, names: list[str] = names) -> object:
            draw = random.sample if len(names) >= ROWS else random.choices
            return session.run(inputs, draw(names, k=ROWS))

        cases[f"{form}, {count} adapters"] = run
    bound = 1.08 if form == "routed" else 1.05
    return [
        bar(f"forward × merged, {name}", ratio, bound) for name, ratio in interleave(cases, rounds).items()
    ]


def measure_path(base: nn.Module, folder: Path, rounds: int) -> list[Bar]:
    """Measure batches from a store whose adapters are rarely in a slot, and count wrong rows."""
    inputs, bars = batch(), list[Bar]()
    cases: dict[str, Callable[[], object]] = {"merged": plain(base, inputs)}
    banks: dict[str, rankfold.Bank] = {}
    for form, count in (("dense", 2000), ("core", 2000)):
        method, options = METHODS[form]
        fill_store(folder / f"{form}.db", saved_adapter(base, method, options), count)
        banks[form] = rankfold.Bank(base, folder / f"{form}.db", slots=200)
        for first in range(0, count, 100):
            with banks[form].batch([f"a{index}" for index in range(first, first + 100)]):
                pass
        session = rankfold.Session(banks[form])

        def run(session: Any = session, count: int = count) -> object:
            return session.run(inputs, [f"a{index}" for index in random.sample(range(count), ROWS)])

        cases[form] = run
    before = {form: bank.stats for form, bank in banks.items()}
    for form, ratio in interleave(cases, rounds).items():
        stats = banks[form].stats
        rate = (stats.slot_hits - before[form].slot_hits) / (stats.rows - before[form].rows)
        bars.append({**bar(f"end to end × merged, {form}", ratio, 1.10), "slot_hit_rate": round(rate, 3)})
    return bars


def measure_loading(base: nn.Module, folder: Path, counts: Sequence[int]) -> list[Bar]:
    """Measure the time from a store to a slot, and how it grows with the adapters that are there."""
    bars: list[Bar] = []
    saved = saved_adapter(base, *METHODS["core"])
    medians: list[float] = []
    for count in counts:
        path = folder / f"loading-{count}.db"
        fill_store(path, saved, count)
        bank = rankfold.Bank(base, path, slots=count)
        with bank.batch(["a0"]):
            pass
        names = [f"a{index}" for index in range(1, count)]
        times: list[float] = []
        for name in names[-1000:] if count > 1000 else random.choices(names, k=1):
            start = time.process_time()
            with bank.batch([name]):
                pass
            times.append(1000 * (time.process_time() - start))
        while len(times) < 1000:  # a new bank each time, for few adapters
            bank = rankfold.Bank(base, path, slots=count)
            with bank.batch(["a0"]):
                pass
            for name in names:
                start = time.process_time()
                with bank.batch([name]):
                    pass
                times.append(1000 * (time.process_time() - start))
        medians.append(statistics.median(times))
        bars.append(
            bar(
                f"store to usable, ms, 99th percentile of {count} adapters",
                statistics.quantiles(times, n=100)[98],
                3,
            )
        )
    bars.append(
        bar(f"the same, median, growth from {counts[0]} to {counts[-1]}", medians[-1] / medians[0], 1.1)
    )
    return bars


def measure_peft_loading(base: nn.Module, folder: Path, counts: Sequence[int] = (50, 200)) -> list[Bar]:
    """Measure `load_adapter` on a PEFT model that has many adapters, against PEFT's LoRA."""
    configs = {
        "PEFT's LoRA": peft.LoraConfig(r=8, target_modules=QUERY_VALUE),
        **{
            method: rankfold.config(method, r=8, target_modules=QUERY_VALUE)
            for method in ("lora", "relayed_lora", "tlora")
        },
    }
    models: dict[str, Any] = {}
    for name, config in configs.items():
        with quiet_libraries():
            models[name] = peft.get_peft_model(copy.deepcopy(base), config)
        models[name].save_pretrained(folder / name)
    times: dict[str, list[float]] = {name: [] for name in models}
    for index in range(max(counts)):
        for name in random.sample(list(models), len(models)):
            start = time.process_time()
            models[name].load_adapter(folder / name, f"a{index}")
            times[name].append(time.process_time() - start)
    own = times.pop("PEFT's LoRA")
    return [
        bar(
            f"load_adapter × PEFT's LoRA, {name}, {count} loaded",
            statistics.median(
                mine / pefts
                for mine, pefts in zip(spent[count - 20 : count], own[count - 20 : count], strict=True)
            ),
            1.0,
        )
        for name, spent in times.items()
        for count in counts
    ]


def measure_threads(base: nn.Module, calls: int = 300) -> list[Bar]:
    """Count answers by another adapter where two threads call a PEFT model with an adapter each."""
    model: Any = peft.get_peft_model(
        copy.deepcopy(base), rankfold.config("lora", r=8, target_modules=QUERY_VALUE, init_weights=False)
    )
    model.add_adapter(
        "other", rankfold.config("lora", r=8, target_modules=QUERY_VALUE, init_weights=False, seed=1)
    )
    model.eval()
    inputs, names = batch(2), ("default", "other")

    @torch.inference_mode()
    def hidden(name: str) -> torch.Tensor:
        return model(**inputs, adapter_names=[name] * 2).last_hidden_state

    right = {name: hidden(name) for name in names}
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda index: (names[index % 2], hidden(names[index % 2])), range(calls))
        wrong = sum(not torch.allclose(answer, right[name], atol=1e-5) for name, answer in answers)
    return [bar(f"wrong answers of {calls} calls of two threads with an adapter each", wrong, 0)]


def bars_of_records(*files: str) -> list[Bar]:
    """Return the bars of records that other benchmarks of serving have written, with their commands."""
    records = [json.loads((RECORDS / file).read_text("utf-8")) for file in files]
    return [{**measured, "command": record["command"]} for record in records for measured in record["bars"]]


def measure_million(base: nn.Module, folder: Path, count: int, batches: int = 400) -> list[Bar]:
    """Measure the time from a store of very many adapters to a slot, for names drawn by Zipf's law."""
    path = folder / "million.db"
    if not path.exists():
        fill_large_store(path, saved_adapter(base, *METHODS["core"]), count)
    bank = rankfold.Bank(base, path, slots=2000)
    ranks = zipf(count, 10 * batches * ROWS)
    times: list[float] = []
    rows = 0
    for index in ranks:
        before = bank.stats.loads
        start = time.process_time()
        with bank.batch([f"a{index}"]):
            pass
        rows += 1
        if bank.stats.loads > before:
            times.append(1000 * (time.process_time() - start))
        if len(times) == batches * 5:
            break
    return [
        {
            **bar(
                f"store to usable, ms, 99th percentile of {count} adapters, Zipf",
                statistics.quantiles(times, n=100)[98],
                5,
            ),
            "median": round(statistics.median(times), 3),
            "slot_hit_rate": round(bank.stats.slot_hits / rows, 3),
            "file_bytes_per_adapter": round(path.stat().st_size / count),
        }
    ]


def zipf(count: int, draws: int, exponent: float = 1.0) -> list[int]:
    """Return numbers below `count`, drawn in proportion to 1 / (number + 1) ** exponent."""
    weights = torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cumulative = weights.cumsum(0) / weights.sum()
    return torch.searchsorted(cumulative, uniform).clamp(max=count - 1).tolist()


def measure_memory(base: nn.Module, folder: Path, count: int = 8000) -> list[Bar]:
    """Measure the resident memory of adapters in slots."""
    saved = saved_adapter(base, *METHODS["core"])
    fill_store(folder / "memory.db", saved, count)
    bank = rankfold.Bank(base, folder / "memory.db", slots=count, host_bytes=0)
    sizes: list[int] = []
    for start in range(0, count, 1000):
        with bank.batch([f"a{index}" for index in range(start, start + 1000)]):
            gc.collect()
            sizes.append(resident_bytes())
    kib = (sizes[-1] - sizes[1]) / (count - 2000) / 1024
    result = bar("resident memory of a TLoRA adapter (r = 8), KiB", kib, 4)
    return [{**result, "learned_bytes": saved.learned_bytes}]


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * 4096


def measure_error(base: nn.Module) -> list[Bar]:
    """Measure rows of a mixed batch against each adapter alone through PEFT, relative to its effect."""
    inputs, bars = batch(6), list[Bar]()
    for dtype, model in ((torch.float32, base), (torch.float64, copy.deepcopy(base).double())):
        bank, adapters = rankfold.Bank(model), dict[str, SavedAdapter]()
        for name, (method, options) in METHODS.items():
            adapters[name] = variant(saved_adapter(base, method, options), 1, std=0.2)
            bank.add(name, adapters[name])
        names = [*adapters, *adapters]
        hidden = rankfold.Session(bank).run(inputs, names).last_hidden_state
        for name, saved in adapters.items():
            rows = [index for index, own in enumerate(names) if own == name]
            with torch.inference_mode():
                alone = load_adapter(copy.deepcopy(model), saved)(**inputs).last_hidden_state[rows]
                effect = (alone - model(**inputs).last_hidden_state[rows]).norm()
            title = f"mixed batch against the adapter alone, relative to its effect, {name}"
            error = float((hidden[rows] - alone).norm() / effect)
            bars.append(bar(f"{title}, {str(dtype).removeprefix('torch.')}", error, 1e-4))
    return bars


def measure_wrong_rows(folder: Path, rows: int) -> list[Bar]:
    """Count rows with another adapter's answer, with four threads, replacement and deletion under way."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    base = BertModel(BertConfig(vocab_size=64, **sizes)).eval()
    saved = saved_adapter(base, *METHODS["dense"])
    inputs = {"input_ids": torch.randint(0, 64, (8, 8))}
    versions = [[variant(saved, 2 * index + side) for side in range(2)] for index in range(40)]
    bank = rankfold.Bank(base)
    session = rankfold.Session(bank)
    right: list[list[torch.Tensor]] = []
    for sides in versions:
        right.append([])
        for adapter in sides:
            bank.add("a", adapter)
            right[-1].append(session.run(inputs, ["a"] * 8).last_hidden_state)
    with AdapterStore(folder / "wrong.db") as store, ThreadPoolExecutor() as pool:
        for index, sides in enumerate(versions):
            store.put(f"a{index}", sides[0])
        session = rankfold.Session(rankfold.Bank(base, store, slots=32, host_bytes=1 << 18))
        readers = [pool.submit(count_wrong, session, inputs, right, seed, rows // 4) for seed in range(4)]
        turn = 0
        while not all(reader.done() for reader in readers):
            turn += 1
            index = turn % len(versions)
            store.put(f"a{index}", versions[index][turn // len(versions) % 2], replace=True)
            if turn % 10 == 0:
                store.delete("a0")
                store.put("a0", versions[0][0])
        wrong, deleted = (
            sum(counts) for counts in zip(*(reader.result() for reader in readers), strict=True)
        )
    result = bar(f"wrong rows of {rows}", wrong, 0)
    evictions = session.bank.stats.evictions
    return [{**result, "writes": turn, "evictions": evictions, "batches_with_a_deleted_adapter": deleted}]


def count_wrong(
    session: rankfold.Session,
    inputs: dict[str, torch.Tensor],
    right: Sequence[Sequence[torch.Tensor]],
    seed: int,
    rows: int,
) -> tuple[int, int]:
    """Return how many rows got what no adapter of their name gives, and batches that named a deleted one."""
    draw = random.Random(seed)
    done = wrong = deleted = 0
    while done < rows:
        picks = draw.choices(range(len(right)), k=8)
        try:
            hidden = session.run(inputs, [f"a{pick}" for pick in picks]).last_hidden_state
        except rankfold.SpecError:
            deleted += 1
            continue
        done += 8
        wrong += sum(
            not any(torch.allclose(hidden[row], side[row], atol=1e-5) for side in right[pick])
            for row, pick in enumerate(picks)
        )
    return wrong, deleted


def measure_decoding(rounds: int) -> list[Bar]:
    """Measure the generation of 32 tokens for eight rows with an adapter each."""
    base = AutoModelForCausalLM.from_pretrained(resolve_model("smollm2").loadable()).eval()
    ids = torch.randint(100, 20000, (8, 16), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}

    def merged() -> object:
        with torch.inference_mode():
            return base.generate(**inputs, **options)

    cases: dict[str, Callable[[], object]] = {"merged": merged}
    for form, method in (("dense", "lora"), ("core", "tlora")):
        saved = saved_adapter(base, method, {"r": 16, "target_modules": "all-linear"})
        bank = rankfold.Bank(base)
        for index in range(8):
            bank.add(str(index), variant(saved, index))
        session = rankfold.Session(bank)

        def run(session: Any = session) -> object:
            return session.generate(inputs, [str(index) for index in range(8)], **options)

        cases[form] = run
    bounds = {"dense": 1.25, "core": 1.15}
    return [
        bar(f"decoding × merged, {form}", ratio, bounds[form])
        for form, ratio in interleave(cases, rounds).items()
    ]


def main() -> None:
    """Measure all bars and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("parts", nargs="*", help="the parts to measure again; all, into a new record")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--adapters", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--million", type=int, default=1_000_000, help="adapters of the largest store")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the test for wrong answers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    warnings.simplefilter("ignore", rankfold.RankfoldWarning)
    base = minilm()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], list[Bar]]] = {
            "memory": partial(measure_memory, base, folder),  # first: others leave free memory behind
            "error": partial(measure_error, base),
            "path": partial(measure_path, base, folder, arguments.rounds),
            "decoding": partial(measure_decoding, max(3, arguments.rounds // 4)),
            "loading": partial(measure_loading, base, folder, arguments.adapters),
            "forward": partial(measure_forward, base, arguments.adapters, arguments.rounds),
            "wrong_rows": partial(measure_wrong_rows, folder, arguments.rows),
            "million": partial(measure_million, base, folder, arguments.million),
            "peft_loading": partial(measure_peft_loading, base, folder),
            "threads": partial(measure_threads, base),
            "server": partial(bars_of_records, "serving_load.json", "serving_faults.json"),
        }
        bars = read_bars(arguments.out) if arguments.parts else {}
        for part in arguments.parts or parts:
            bars |= {measured["name"]: measured for measured in parts[part]()}
            if arguments.out is not None:
                text = json.dumps(record_of(list(bars.values())), indent=2) + "\n"
                arguments.out.write_text(text, "utf-8")


def read_bars(path: Path | None) -> dict[str, Bar]:
    """Return the bars of an earlier record by name; a part that is measured again replaces its own."""
    if path is None or not path.exists():
        return {}
    return {measured["name"]: measured for measured in json.loads(path.read_text("utf-8"))["bars"]}


def record_of(bars: Sequence[Bar]) -> dict[str, Any]:
    """Return the record of the bars so far."""
    return {
        "command": " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"cpu": cpu_name(), "python": platform.python_version()},
        "versions": {module.__name__: module.__version__ for module in (torch, peft, transformers)},
        "threads": 1,
        "bars": bars,
    }


if __name__ == "__main__":
    main()
