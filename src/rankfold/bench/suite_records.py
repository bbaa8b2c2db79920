"""A suite beside its records, so that a report made later still knows what the records were asked."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from rankfold.bench.claims import Judgement, Rows, judge
from rankfold.bench.record import RunRecord
from rankfold.bench.suite import Suite
from rankfold.errors import DataError
from rankfold.files import write_whole

NAME = "suite.json"


def keep_suite(suite: Suite, folder: Path) -> None:
    """Write a suite into the folder of its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / NAME, _adapter().dump_json(suite, indent=1) + b"\n")


def kept_suite(folder: Path) -> Suite | None:
    """Return the suite whose runs a folder holds, or None if they are of no suite.

    Raises:
        DataError: If it cannot be read.
    """
    file = folder / NAME
    try:
        return _adapter().validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(f"cannot read '{file}'; run the suite again, which writes it anew.") from error


def judge_suite(suite: Suite, records: Iterable[RunRecord]) -> list[Judgement]:
    """Return what records of a suite say to its claims.

    Args:
        suite: The suite.
        records: Its runs; what is none of them, or did not end well, is left out.
    """
    by_name = {record.name: record for record in records if record.status == "done"}
    studies: dict[tuple[str, str], Rows] = {}
    for place in suite.places():
        rows = {
            row.label: [
                by_name[name]
                for seed in suite.seeds
                if (name := suite.run_name(place, row.label, f"seed{seed}")) in by_name
            ]
            for row in suite.rows(place)
        }
        model = place.model or str(suite.base.get("model", ""))
        task = place.task or str(suite.base.get("task") or suite.base.get("data") or "")
        studies[model, task] = rows
    return judge(suite.claims, studies)


@cache
def _adapter() -> TypeAdapter[Suite]:
    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(Suite))
