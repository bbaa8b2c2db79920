"""A suite goes on after a failure and after a stop, and never overwrites what it did not make."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.executors.base import Inline
from rankfold.bench.suites.protocol import check_suite
from rankfold.bench.suites.runner import run_all
from rankfold.bench.suites.suite import Suite, Variant
from rankfold.errors import DataError, OutputExistsError, SpecError, TrainingError
from rankfold.report.results import make_results
from rankfold.runs.methods import find_method
from rankfold.runs.output import check_output
from rankfold.runs.record import ReducerInfo, RunRecord
from tests.support.records import Trainer

BASE = {"model": "minilm", "data": "rows.csv", "steps": 5}
SUITE = Suite("some", BASE, (Variant("lora"), Variant("tlora")), (0, 1))


class Listener:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def start(self, total, description):
        self.told.append(("start", total))

    def advance(self, done, **fields):
        self.told.append(("advance", done))

    def finish(self):
        self.told.append(("finish",))


def test_every_run_is_done_once_and_kept_when_called_again(tmp_path):
    trainer = Trainer()
    first = run_all(SUITE.requests(tmp_path), executor=Inline(trainer))
    again = run_all(SUITE.requests(tmp_path), executor=Inline(trainer))
    assert len(trainer.asked) == 4
    assert [outcome.is_reused for outcome in (*first, *again)] == [False] * 4 + [True] * 4
    assert [outcome.record for outcome in again] == [outcome.record for outcome in first]


def test_suite_goes_on_where_it_was_stopped(tmp_path):
    class Stopped(Trainer):
        def __call__(self, request, *, progress=None):
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().__call__(request, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run_all(SUITE.requests(tmp_path), executor=Inline(Stopped()))
    trainer = Trainer()
    outcomes = run_all(SUITE.requests(tmp_path), executor=Inline(trainer))
    assert trainer.asked == ["lora-seed1", "tlora-seed1"]
    assert all(outcome.record.status == "done" for outcome in outcomes)


def test_suite_moved_to_another_folder_is_still_done(tmp_path):
    run_all(SUITE.requests(tmp_path / "here"), executor=Inline(Trainer()))
    (tmp_path / "here").rename(tmp_path / "there")
    trainer = Trainer()
    run_all(SUITE.requests(tmp_path / "there"), executor=Inline(trainer))
    assert trainer.asked == []


@pytest.mark.parametrize("leaves_record", [True, False], ids=["with a record", "before there is a record"])
def test_failure_is_a_record_and_does_not_stop_the_others(tmp_path, leaves_record):
    trainer = Trainer(["lora-seed0"], leaves_record=leaves_record)
    outcomes = run_all(SUITE.requests(tmp_path), executor=Inline(trainer))
    assert len(trainer.asked) == 4
    assert [outcome.record.status for outcome in outcomes] == ["failed", "done", "done", "done"]
    written = RunRecord.read(tmp_path / "lora-seed0")
    assert written == outcomes[0].record
    assert (written.error, written.method.name) == ("the loss is not a number.", "lora")


def test_record_of_a_run_that_never_began_is_of_its_own_model_and_data(tmp_path):
    data = {name: replace(SUITE, base={**BASE, "data": f"{name}.csv"}) for name in ("one", "other")}
    requests = [each for name, suite in data.items() for each in suite.requests(tmp_path / name)]
    alike = [request for request in requests if request.data == "one.csv"]
    lost = {request.out for request in requests if request not in alike[1:]}

    def train(request, *, progress=None):
        if request.out in lost:
            raise TrainingError("the file cannot be read.")
        return Trainer()(request, progress=progress)

    outcomes = run_all(requests, executor=Inline(train))
    assert [outcome.record and outcome.record.status for outcome in outcomes] == [
        "failed",
        *["done"] * 3,
        *[None] * 4,
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"weight_decay": 0.5},
        {"scheduler": "constant", "warmup": 0.2},
        {"batch_size": 4, "max_length": 64},
        {"precision": "bf16", "freeze_head": True},
        {"lr_groups": {"up": 4.0}},
        {"reducer": {"active_layers": 1}},
    ],
    ids=str,
)
def test_seed_that_never_began_belongs_to_the_row_of_its_seeds(tmp_path, asked):
    class Exact(Trainer):
        """A stand-in whose records say what was asked for."""

        def __call__(self, request, *, progress=None):
            record = super().__call__(request, progress=progress)
            asked = {name: getattr(request, name) for name in ("scheduler", "warmup", "batch_size")}
            training = replace(
                record.training,
                **asked,
                weight_decay=request.weight_decay,
                max_length=request.max_length or 128,
                precision={"auto": "fp32"}.get(request.precision, request.precision),
                head="frozen" if request.freeze_head else "trained",
                rates=request.rates.non_default(),
                learning_rate=find_method(request.method).learning_rate,
            )
            reducer = request.reducer and ReducerInfo(dict(request.reducer), ("one",))
            record = replace(
                record,
                method=replace(record.method, options=dict(request.options)),
                training=training,
                reducer=reducer,
            )
            record.write(request.out)
            return record

    suite = replace(SUITE, methods=(Variant("lora", settings=asked), Variant("lora")), seeds=(0, 1, 2))
    lost = suite.requests(tmp_path)[4]
    assert lost.seed == 2
    outcomes = run_all(suite.requests(tmp_path), executor=Inline(Exact([lost.out.name])))
    (rows,) = make_results([[outcome.record for outcome in outcomes]])
    assert [(len(row.records), len(row.failures)) for row in rows] == [(2, 1), (3, 0)]


def test_run_that_never_began_has_the_budget_it_was_asked_for(tmp_path):
    methods = (Variant("lora"), Variant("tlora", settings={"steps": 200}))
    outcomes = run_all(
        replace(SUITE, methods=methods, seeds=(0,)).requests(tmp_path),
        executor=Inline(Trainer(["tlora-seed0"])),
    )
    training = outcomes[1].record.training
    assert (training.steps, training.epochs) == (200, 2.0)  # 1600 rows, 16 of them in an update


def test_failed_run_is_tried_again(tmp_path):
    run_all(SUITE.requests(tmp_path), executor=Inline(Trainer(["lora-seed0"])))
    trainer = Trainer()
    outcomes = run_all(SUITE.requests(tmp_path), executor=Inline(trainer))
    assert trainer.asked == ["lora-seed0"]
    assert RunRecord.read(tmp_path / "lora-seed0").status == outcomes[0].record.status == "done"


def test_no_record_is_invented_when_every_run_fails(tmp_path):
    names = [request.out.name for request in SUITE.requests(tmp_path)]
    outcomes = run_all(SUITE.requests(tmp_path), executor=Inline(Trainer(names)))
    assert [outcome.record for outcome in outcomes] == [None] * 4
    assert all(isinstance(outcome.error, TrainingError) for outcome in outcomes)


def test_run_of_another_request_is_refused_before_anything_is_trained(tmp_path):
    run_all(SUITE.requests(tmp_path), executor=Inline(Trainer()))
    changed = replace(SUITE, base={**SUITE.base, "steps": 6}, seeds=(2, 0))
    trainer = Trainer()
    with pytest.raises(OutputExistsError, match="holds another run"):
        run_all(changed.requests(tmp_path), executor=Inline(trainer))
    assert trainer.asked == []


def test_folder_with_something_else_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "tlora-seed1").mkdir()
    (tmp_path / "tlora-seed1" / "thesis.tex").touch()
    trainer = Trainer()
    with pytest.raises(OutputExistsError, match="tlora-seed1"):
        run_all(SUITE.requests(tmp_path), executor=Inline(trainer))
    assert trainer.asked == []


def test_overwrite_does_everything_again(tmp_path):
    run_all(SUITE.requests(tmp_path), executor=Inline(Trainer()))
    trainer = Trainer()
    run_all(SUITE.requests(tmp_path), executor=Inline(trainer), overwrite=True)
    assert len(trainer.asked) == 4


def _damage(values):
    return "{half"


def _of_another_version(values):
    del values["baselines"]
    return json.dumps(values)


def _of_another_request(values):
    return json.dumps({**values, "request": {**values["request"], "no_such_option": 1}})


@pytest.mark.parametrize("spoil", [_damage, _of_another_version, _of_another_request])
def test_record_that_cannot_be_read_is_named_and_can_be_replaced(tmp_path, spoil):
    run_all(SUITE.requests(tmp_path), executor=Inline(Trainer()))
    folder = tmp_path / "tlora-seed1"
    (folder / "run.json").write_text(spoil(json.loads((folder / "run.json").read_text())))
    trainer = Trainer()
    with pytest.raises(DataError, match=rf"; delete '{folder}', or add --overwrite"):
        run_all(SUITE.requests(tmp_path), executor=Inline(trainer))
    assert trainer.asked == []
    run_all(SUITE.requests(tmp_path), executor=Inline(trainer), overwrite=True)
    assert RunRecord.read(folder).status == "done"


def test_progress_ends_at_the_total_and_is_finished_also_after_a_stop(tmp_path):
    listeners = []

    def make():
        listeners.append(Listener())
        return listeners[-1]

    run_all(SUITE.requests(tmp_path), executor=Inline(Trainer()), make_progress=make)
    assert listeners[0].told[0] == ("start", 4)
    assert listeners[0].told[-2:] == [("advance", 4), ("finish",)]
    assert all(listener.told[-1] == ("finish",) for listener in listeners)


@pytest.mark.parametrize(
    "method",
    [Variant("lroa"), Variant("lora", {"rank": 8}), Variant("peft:lora", {"rank": 8})],
    ids=str,
)
def test_methods_with_a_typo_are_refused_before_the_first_run(method):
    with pytest.raises(SpecError, match="unknown"):
        check_suite(replace(SUITE, methods=(Variant("lora"), method)), Path("out"))


def test_task_with_a_typo_is_refused_before_the_first_run_unless_a_folder_has_its_name(tmp_path):
    suite = replace(SUITE, base={"model": "minilm"}, tasks={"bbc_news": {}, "mrcp": {}})
    with pytest.raises(SpecError, match=r"unknown task 'mrcp'. Did you mean 'mrpc'"):
        check_suite(suite, Path("out"))
    (tmp_path / "mrcp").mkdir()
    check_suite(replace(suite, base={"model": "minilm", "data_root": str(tmp_path)}), Path("out"))


def test_folder_whose_place_cannot_be_taken_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"'\.' is the folder you are in.*name a new folder in it"):
        check_output(Path(), overwrite=False)


def test_record_of_a_failure_that_finds_the_disk_full_does_not_stop_the_others(tmp_path, monkeypatch, caplog):
    whole = RunRecord.write

    def write(record, folder):
        if record.status == "failed":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(record, folder)

    monkeypatch.setattr(RunRecord, "write", write)
    outcomes = run_all(SUITE.requests(tmp_path), executor=Inline(Trainer(["tlora-seed0"])))
    assert [outcome.record.status for outcome in outcomes].count("failed") == 1
    assert "No space left on device" in caplog.text
    assert run_all(SUITE.requests(tmp_path), executor=Inline(Trainer()))[1].record.status == "done"
