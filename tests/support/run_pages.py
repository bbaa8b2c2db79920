"""Runs with everything that the page of one run can show, for the tests that read it and look at it."""

from dataclasses import replace

from rankfold.runs.examples import HeldOutExample
from rankfold.runs.record import LengthsInfo
from tests.support.records import fail, make_record

HOSTILE = "</script><script>alert(1)</script>"
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 12

LENGTHS = LengthsInfo((3.0, 43.0, 83.0, 123.0, 163.0), (40, 900, 500, 160), 160)


def classes_run(count=5):
    """A classification with some mistakes, a long class name and findings."""
    record = make_record(quality=0.8)
    names = ("business", "entertainment " + LONG[:40], *(f"class {index}" for index in range(2, count)))
    if count > 5:
        spread = [replace(item, label=item.id % count) for item in record.predictions]
        record = replace(record, predictions=tuple(spread))
    findings = ("12 of 1,600 rows are there twice.", f"the class '{HOSTILE}' has two rows.")
    return replace(record, task=replace(record.task, label_names=names), lengths=LENGTHS, findings=findings)


def numbers_run():
    """A regression of prices in a unit."""
    record = make_record(kind="regression", task="prices", quality=0.7, examples=200)
    far = tuple(
        replace(item, label=item.label * 1e5 + 0.5, prediction=item.prediction * 1e5)
        for item in record.predictions
    )
    settings = {"scale": {"mean": 2e5, "std": 1e5}, "unit": "€"}
    return replace(record, predictions=far, task=replace(record.task, settings=settings), lengths=LENGTHS)


def texts_run():
    """An instruction task with open answers, which have a loss and no predictions."""
    record = make_record()
    task = replace(record.task, kind="instruction", metric="answer_loss", label_names=None)
    return replace(record, task=task, metrics={"answer_loss": 1.25}, baselines={}, predictions=())


def failed_run():
    """A run that failed with a hostile message."""
    return fail(make_record(), HOSTILE)


def mistakes(count=12):
    """Mistakes with long, hostile and paired texts."""
    texts = (
        {"text": f"{LONG} {HOSTILE}"},
        {"text": "short", "pair": "a second text"},
        {"text": "word " * 300},
    )
    return [
        HeldOutExample("mistake", f"row-{index}", texts[index % 3], "business", "sport", 2.5 - index / 10)
        for index in range(count)
    ]


def samples():
    """Answers beside their references."""
    return [
        HeldOutExample("sample", index, {"prompt": "Name three rivers."}, "Rhine", LONG) for index in (1, 2)
    ]


PAGES = {
    "classes": (classes_run, mistakes),
    "many classes": (lambda: classes_run(60), mistakes),
    "numbers": (numbers_run, lambda: mistakes(3)),
    "texts": (texts_run, samples),
    "failed": (failed_run, list),
}
