"""The committed records, which a script brought from commands to requests, say what they said before."""

import json

import pytest

from rankfold.bench.suites.saved_suite import judge_suite, load_suite
from rankfold.report.claims import claim_cells
from rankfold.runs.records import ARCHIVE_NAME, read_archive
from tests.architecture.sources import ROOT
from tests.compat.corpus import CORPUS

RECORDS = ROOT / "benchmarks" / "records"
VERDICTS = json.loads((CORPUS / "verdicts.json").read_text("utf-8"))


@pytest.mark.parametrize("suite", VERDICTS)
def test_claims_have_the_verdicts_they_had_before_the_migration(suite):
    records = read_archive(RECORDS / suite / ARCHIVE_NAME)
    judgements = judge_suite(load_suite(RECORDS / suite), records.values())
    cells = {row[0]: row for row in map(claim_cells, judgements)}
    assert cells.keys() == VERDICTS[suite].keys()
    for claim, before in VERDICTS[suite].items():
        verdict, comparisons, measured_on = (cells[claim][column] for column in (1, 4, 5))
        assert (verdict, comparisons, measured_on) == tuple(before.values())


def test_every_archive_is_in_the_present_format():
    for file in RECORDS.glob(f"*/{ARCHIVE_NAME}"):
        for record in read_archive(file).values():
            assert record.request.method == record.method.name
            assert record.request.seed == record.training.seed
