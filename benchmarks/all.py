"""Every benchmark of speed within some minutes, compared with the committed records: `make bench`.

Only ratios are compared, each to a reference of the same rounds. A ratio that is more than 5 % worse than the
record's, with no number common to both intervals, is named as a regression, as are more kept bytes; the exit
code is 1 then.

    python benchmarks/all.py --minutes 15
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ratios import Ratio

HERE = Path(__file__).parent
RECORDS = HERE / "records"
BENCHMARKS = {
    "draws": ["draws.py"],
    "training_step": ["training_step.py"],
    "heads": ["heads.py"],
    "heads_dropout": ["heads.py", "--dropout", "0.05"],
    "reducer_step": ["reducer_step.py"],
    "growth": ["growth.py"],
}
"""By the name of the record, the script and its options."""

SHARES = {"draws": 1, "growth": 6}
"""Shares of the time; the others have 2. Building the models takes as long again."""

_OTHER_SHARE = 2
_TOLERANCE = 1.05
_BYTES_TOLERANCE = 1.005
_MEASURED_SHARE = 0.5


def regressions(record: dict[str, Ratio], measured: dict[str, Ratio]) -> list[str]:
    """Return a line for each ratio that is worse than its record; one that is new has none."""
    lines: list[str] = []
    for name in measured.keys() & record.keys():
        old, new = record[name], measured[name]
        if new["time"] > old["time"] * _TOLERANCE and new["low"] > old["high"]:
            intervals = f"[{old['low']:.3f}, {old['high']:.3f}] to [{new['low']:.3f}, {new['high']:.3f}]"
            lines.append(f"{name}: time {old['time']:.3f} to {new['time']:.3f}, intervals {intervals}")
        if new.get("bytes", 0.0) > old.get("bytes", float("inf")) * _BYTES_TOLERANCE:
            lines.append(f"{name}: bytes {old['bytes']:.3f} to {new['bytes']:.3f}")
    return sorted(lines)


def run(name: str, seconds: float, folder: Path) -> dict[str, Ratio]:
    """Run a benchmark for about so many seconds, and return its ratios."""
    script, *options = BENCHMARKS[name]
    out = folder / f"{name}.json"
    limits = ["--rounds", "1000", "--seconds", f"{seconds:.0f}", "--out", str(out)]
    subprocess.run([sys.executable, str(HERE / script), *options, *limits], check=True, cwd=HERE.parent)
    return json.loads(out.read_text())["ratios"]


def main() -> None:
    """Run all benchmarks, or those that are named, and name what became slower than its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all if none")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all of them together")
    parser.add_argument("--out", type=Path, help="folder for the new records")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}.")
    names = arguments.names or list(BENCHMARKS)
    shares = {name: SHARES.get(name, _OTHER_SHARE) for name in names}
    second = 60 * arguments.minutes * _MEASURED_SHARE / sum(shares.values())
    slower: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            print(f"== {name}", flush=True)
            measured = run(name, second * shares[name], folder)
            committed = RECORDS / f"{name}.json"
            record = json.loads(committed.read_text()).get("ratios", {}) if committed.exists() else {}
            if not record:
                print(f"no ratios with intervals are committed for {name}")
            slower += [f"{name}: {line}" for line in regressions(record, measured)]
    print(*(slower or ["nothing is slower than its record"]), sep="\n")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
