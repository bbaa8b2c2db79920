"""Records of a suite with tasks, a sweep, tuning and claims, as a suite that has run would leave them."""

from dataclasses import replace
from pathlib import Path

from rankfold.bench.statistics.claims import Claim
from rankfold.bench.suites.saved_suite import save_suite
from rankfold.bench.suites.search import Tuning
from rankfold.bench.suites.suite import Suite, Variant
from rankfold.runs.record import TuningInfo
from tests.support.records import make_record, with_request

RATES = (1e-3, 3e-3)
_KS = (4, 8, 16, 32)
_QUALITY = {"lora": 0.92, "relayed_lora": 0.85, "tlora": 0.6}
_NUMBERS = {"lora": 73_728, "relayed_lora": 2_700, "tlora": 9_000}

CLAIMS = (
    Claim("X1", "Relayed, Table 3", "Close to LoRA with a fraction of its numbers.", "not inferior",
          (("relayed_lora k=32", "lora"),), margin=0.25),
    Claim("X3", "Relayed, Figure 4", "Quality rises with k.", "rising",
          (tuple(f"relayed_lora k={k}" for k in _KS),), tasks=("mrpc",)),
    Claim("X18", "TLoRA+, Tables 3-6", "Better than LoRA at every rank.", "greater", (("tlora", "lora"),)),
    Claim("X99", "Nobody", "A row that did not run is better than LoRA.", "greater",
          (("effilora", "lora"),)),
)  # fmt: skip


def a_suite(tasks=("mrpc", "sst2"), seeds=(0, 1, 2, 3), claims=CLAIMS):
    """Return a suite of seven methods, the last of which never ran."""
    sweep = [Variant("relayed_lora", {"r": 64, "k": k}, entry=1) for k in _KS]
    methods = (
        Variant("lora", {"r": 8}, entry=0),
        *sweep,
        Variant("tlora", {"r": 32}, entry=2),
        Variant("effilora", {"r": 8}, entry=3),
    )
    tuning = Tuning({"learning_rate": list(RATES)})
    places = {task: {} for task in tasks}
    return Suite(
        "relays", {"model": "minilm"}, methods, seeds, "How far relays go.", places, (), tuning, claims
    )


def records_of(suite):
    """Return the runs of the suite, trials first; what tuning chose differs from method to method."""
    records = []
    for place in suite.conditions():
        rows = suite.variants_at(place)[:-1]
        tuned = list(dict.fromkeys(row.search_label for row in rows))
        for row in rows:
            if row.label in tuned:
                records += [_trial(suite, place, row, number) for number in range(len(RATES))]
            rate = RATES[(tuned.index(row.search_label) + len(place.task)) % 2]
            part = TuningInfo(len(RATES), None, {"learning_rate": rate}, 0.9)
            for seed in suite.seeds:
                name = suite.run_name(place, row.label, f"seed{seed}")
                records.append(_run(row.method, place, seed, name, part, rate))
    return records


def write_suite(folder, **arguments):
    """Write a suite with its records into a folder, as `rankfold compare` leaves it."""
    suite = a_suite(**arguments)
    save_suite(suite, folder)
    for record in records_of(suite):
        (folder / record.name).mkdir()
        record.write(folder / record.name)
    return suite


def _trial(suite, place, row, number):
    name = suite.run_name(place, row.label, f"trial{number + 1}")
    part = TuningInfo(len(RATES), number + 1, {"learning_rate": RATES[number]})
    record = _run(row.method, place, 0, name, part, RATES[number])
    return replace(record, data=replace(record.data, sha256="ef" * 32))


def _run(method, place, seed, name, part, rate):
    k = method.options.get("k", 1)
    record = make_record(
        method.name,
        seed=seed,
        task=place.task,
        options=method.options,
        learning_rate=rate,
        examples=120,
        quality=_QUALITY[method.name] - (0.3 / k if k > 1 else 0),
        size=4 * _NUMBERS[method.name] * k,
    )
    return replace(with_request(record, out=Path("runs") / name), tuning=part)
