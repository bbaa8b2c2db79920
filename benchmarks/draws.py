"""Speed of drawing frozen factors, as a multiple of the time of `torch.randn` of the same size, on one core.

python benchmarks/draws.py --rounds 20 --out benchmarks/records/draws.json
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import torch
from ratios import Ratio, interleave, ratios_of
from training_step import circumstances

from rankfold.seeding import Distribution, random_matrix

SIZES = ((16, 384), (16, 4096), (64, 4096), (256, 11008), (11008, 16))
DISTRIBUTIONS: tuple[Distribution, ...] = ("normal", "uniform")
REFERENCE = "torch.randn"


def main() -> None:
    """Measure every size, print megabytes in a second, and write the ratios down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, help="begin no round of a size after so many")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, Ratio] = {}
    speeds: dict[str, float] = {}
    for rows, cols in SIZES:
        draws = {
            f"{name} {rows} x {cols}": partial(
                random_matrix, rows, cols, seed=0, name="layer", std=1.0, distribution=name
            )
            for name in DISTRIBUTIONS
        }
        times = interleave(
            {REFERENCE: partial(torch.randn, rows, cols), **draws}, arguments.rounds, arguments.seconds
        )
        found = ratios_of(times, REFERENCE)
        for name in draws:
            ratios[name] = found[name]
            speeds[name] = rows * cols * 4e-6 / statistics.median(times[name])
            print(f"{name:24} {speeds[name]:6.0f} MB/s   {ratios[name]['time']:6.2f} times torch.randn")
    if arguments.out is not None:
        record = {**circumstances(arguments, REFERENCE), "megabytes_per_second": speeds, "ratios": ratios}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
