"""A run that was stopped: it goes on as what it was, says what differs, and is never lost by accident."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

from rankfold.bench.executors.base import Inline
from rankfold.bench.suites.runner import run_all
from rankfold.errors import (
    BusyError,
    DataError,
    DiskError,
    OutputExistsError,
    RankfoldWarning,
    SpecError,
    TrainingError,
)
from rankfold.runs.output import folder_beside, read_start, restore_run
from rankfold.runs.prepare import prepare
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.resume import is_unfinished
from rankfold.runs.run import run
from rankfold.runs.trained import open_trained
from tests.support.killing import StopAt
from tests.support.records import Trainer, fail, make_record
from tests.support.tiny_models import review_rows, write_bert, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def request_(tiny_bert, reviews, tmp_path):
    """A run of a second, with a checkpoint every two steps."""
    return RunRequest(
        model=str(tiny_bert),
        method="lora",
        data=str(reviews),
        out=tmp_path / "run",
        options={"r": 2, "dropout": 0.2},
        steps=7,
        batch_size=16,
        learning_rate=1e-2,
        max_length=32,
        checkpoint_every=2,
    )


def stop(request_, step=5):
    with pytest.raises(KeyboardInterrupt):
        run(request_, progress=StopAt(step))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    """What a run's folder says, but for times and memory."""
    record = json.loads((folder / "run.json").read_text("utf-8"))
    for name in ("created", "request", "seconds", "peak_memory_bytes"):
        del record[name]
    files = ("adapter_model.safetensors", "adapter_config.json", "curve.csv")
    return record, [(folder / name).read_bytes() for name in files]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"freeze_head": True},
        {"method": "peft:vera", "options": {"r": 4}},
        {"precision": "bf16"},
        {"method": "tlora_plus", "options": {"r": 2}, "lr_groups": {"core": 8, "up": 2.0}},
        {
            "gradient_accumulation": 2,
            "gradient_checkpointing": True,
            "group_by_length": True,
            "optimizer": "adafactor",
            "attn": "eager",
            "base_dtype": "bf16",
            "max_grad_norm": 0.5,
            "reducer": {"active_fraction": 0.5, "interval": 2, "start_step": 2},
            "save_best": "loss",
            "eval_every": 2,
        },
        {"save_best": "accuracy", "early_stopping": 5, "eval_every": 1, "learning_rate": 0.5},
        pytest.param({"compile": True, "gradient_accumulation": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_resumed_run_is_the_run_that_was_not_stopped(request_, tmp_path, change):
    request_ = replace(request_, **change)
    run(replace(request_, out=tmp_path / "whole"))
    stop(request_)
    assert names(tmp_path) == ["run.unfinished", "whole"]
    record = run(replace(request_, resume=True))
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert names(tmp_path) == ["run", "whole"]
    assert record.request == request_
    assert record.seconds.total > record.seconds.train > 0


def test_run_is_resumed_from_what_its_folder_says(request_, tmp_path):
    stop(request_)
    assert read_start(request_.out).request == request_
    again = replace(read_start(request_.out).request, resume=True)
    assert run(again) == RunRecord.read(request_.out)


def test_unfinished_run_is_neither_forgotten_nor_replaced_by_accident(request_):
    stop(request_)
    with pytest.raises(OutputExistsError, match=r"--resume to go on with it, or --overwrite to start again"):
        run(request_)
    assert is_unfinished(request_.out)


def test_overwriting_starts_again(request_, tmp_path):
    stop(request_)
    run(replace(request_, seed=1, overwrite=True))
    assert RunRecord.read(request_.out).training.seed == 1
    assert names(tmp_path) == ["run"]


def test_earlier_run_stays_until_the_resumed_one_replaces_it(request_, tmp_path):
    run(replace(request_, seed=1))
    before = content(request_.out)
    stop(replace(request_, overwrite=True))
    assert content(request_.out) == before
    run(replace(request_, overwrite=True, resume=True))
    assert RunRecord.read(request_.out).training.seed == 0
    assert names(tmp_path) == ["run"]


def test_run_stopped_before_its_first_checkpoint_leaves_nothing(request_, tmp_path):
    stop(request_, step=1)
    assert names(tmp_path) == []


def test_resuming_where_there_is_nothing_starts_at_the_beginning(request_):
    run(replace(request_, resume=True))
    assert request_.out.is_dir()


def test_resuming_what_is_done_returns_it_untouched(request_, caplog):
    record = run(request_)
    before = (request_.out / "run.json").stat().st_mtime_ns
    with caplog.at_level("INFO", "rankfold"):
        assert run(replace(request_, resume=True)) == record
    assert "done already" in caplog.text
    assert (request_.out / "run.json").stat().st_mtime_ns == before
    with pytest.raises(OutputExistsError, match="holds another run"):
        run(replace(request_, seed=1, resume=True))


@pytest.fixture
def own_request(request_, tmp_path):
    """The same run on a model and data that a test may change."""
    data = write_splits(tmp_path / "talks", train=review_rows(20), validation=review_rows(8, seed=1))
    return replace(request_, model=str(write_bert(tmp_path / "bert")), data=str(data), steps=2)


def test_finished_run_of_changed_data_is_not_done(own_request):
    run(own_request)
    rows = [{**row, "label": 1 - row["label"]} for row in review_rows(20)]
    write_splits(Path(own_request.data), train=rows)
    with pytest.raises(
        DataError, match=r"is done, but the data has the hash \w{8} and had \w{8}; add --over"
    ):
        run(replace(own_request, resume=True))
    write_splits(Path(own_request.data), train=review_rows(20))
    assert run(replace(own_request, resume=True)).status == "done"


def test_finished_run_of_a_changed_model_is_not_done(own_request):
    run(own_request)
    weights = Path(own_request.model) / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(DataError, match=r"is done, but the model has the hash \w{8} and had \w{8}"):
        run(replace(own_request, resume=True))


def test_finished_run_whose_data_is_gone_is_done(own_request):
    record = run(own_request)
    shutil.rmtree(own_request.data)
    assert run(replace(own_request, resume=True)) == record


CHANGES = [
    ({"method": "tlora", "options": {"r": 2}}, 'method was "lora" and is "tlora"'),
    ({"options": {"r": 3, "dropout": 0.2}}, "options.r was 2 and is 3"),
    ({"options": {"r": 2}}, "options.dropout was 0.2 and is null"),
    ({"seed": 1}, "seed was 0 and is 1"),
    ({"batch_size": 8}, "batch_size was 16 and is 8"),
    ({"steps": 8}, "steps was 7 and is 8"),
    ({"learning_rate": 0.011}, "learning_rate was 0.01 and is 0.011"),
    ({"train_rows": 20}, "train_rows was null and is 20"),
]


def test_resuming_another_run_names_what_differs(request_):
    stop(request_)
    for change, words in CHANGES:
        with pytest.raises(SpecError, match=words):
            run(replace(request_, resume=True, **change))
    assert is_unfinished(request_.out)


def test_resuming_with_other_data_of_the_same_name_is_refused(request_, tmp_path):
    data = write_splits(tmp_path / "data", train=review_rows(48), validation=review_rows(16, seed=1))
    request_ = replace(request_, data=str(data))
    stop(request_)
    write_splits(data, train=review_rows(48, seed=3))
    with pytest.raises(SpecError, match=r"data\.sha256"):
        run(replace(request_, resume=True))


def test_resuming_with_another_model_of_the_same_name_is_refused(request_, tmp_path):
    request_ = replace(request_, model=str(write_bert(tmp_path / "bert")))
    stop(request_)
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in weights.items()}, tmp_path / "bert" / "model.safetensors"
    )
    with pytest.raises(SpecError, match=r"base_fingerprint|model\.sha256"):
        run(replace(request_, resume=True))


def test_resuming_elsewhere_goes_on_with_a_warning(request_):
    stop(request_)
    file = folder_beside(request_.out) / "start.json"
    file.write_text(file.read_text().replace('"python": "3', '"python": "2'))
    with pytest.warns(RankfoldWarning, match=r"versions\.python was .* not bit for bit"):
        assert run(replace(request_, resume=True)).status == "done"


def test_two_processes_cannot_train_the_same_run(request_):
    folder = folder_beside(request_.out)
    folder.mkdir()
    with FileLock(folder / "lock"), pytest.raises(BusyError, match="another process"):
        run(request_)
    assert run(request_).status == "done"


def leave_failure(folder):
    folder.mkdir()
    fail(make_record()).write(folder)


class Then(StopAt):
    """A progress that does something when it hears of a step."""

    def __init__(self, step, act):
        super().__init__(step)
        self.act = act

    def advance(self, done, **fields):
        if done == self.step:
            self.act()


def test_failure_of_another_process_is_replaced_at_the_end(request_):
    run(request_, progress=Then(5, lambda: leave_failure(request_.out)))
    assert RunRecord.read(request_.out).status == "done"


def test_training_whose_folder_was_taken_can_go_on(request_, tmp_path):
    thesis = request_.out / "thesis.tex"

    def take():
        leave_failure(request_.out)
        thesis.touch()

    with pytest.raises(OutputExistsError, match=r"the finished run is in '.*run\.finished', move"):
        run(request_, progress=Then(5, take))
    assert RunRecord.read(tmp_path / "run.finished").status == "done"
    assert thesis.exists()
    assert is_unfinished(request_.out)
    request_.out.rename(tmp_path / "taken")
    assert run(replace(request_, resume=True)).status == "done"
    assert names(tmp_path) == ["run", "run.finished", "taken"]


def test_suite_leaves_a_run_of_another_process_alone(request_, tmp_path):
    folder = folder_beside(request_.out)
    folder.mkdir()
    requests = [request_, replace(request_, out=tmp_path / "other")]
    with FileLock(folder / "lock"):
        there, here = run_all(requests)
    assert (there.is_elsewhere, there.record, here.record.status) == (True, None, "done")
    assert names(tmp_path) == ["other", "run.unfinished"]
    assert [outcome.record.status for outcome in run_all(requests)] == ["done", "done"]


@pytest.mark.parametrize("is_done", [True, False], ids=["done", "stopped"])
def test_what_another_process_did_in_the_meantime_is_not_done_again(request_, tmp_path, is_done):
    requests = [request_, replace(request_, out=tmp_path / "other")]
    updates = []

    class Listener(StopAt):
        def advance(self, done, **fields):
            updates.append(done)

    def work(asked, *, progress=None):
        if asked.out == request_.out:  # both have been looked at before the first begins
            run(requests[1]) if is_done else stop(requests[1])
            return run(asked)
        return run(asked, progress=Listener(0))

    outcomes = run_all(requests, executor=Inline(work))
    assert [outcome.record.status for outcome in outcomes] == ["done", "done"]
    assert updates == ([] if is_done else [4, 5, 6, 7])


def test_run_finished_while_this_one_was_prepared_is_taken_as_it_is(request_, monkeypatch):
    def prepare_slowly(asked, progress=None):
        monkeypatch.undo()
        run(request_)
        return prepare(asked)

    monkeypatch.setattr("rankfold.runs.run.prepare", prepare_slowly)
    record = run(replace(request_, resume=True), progress=StopAt(1))
    assert record == RunRecord.read(request_.out)


def test_run_that_cannot_succeed_leaves_nothing_to_resume(request_, tmp_path):
    with pytest.raises(TrainingError):
        run(replace(request_, learning_rate=1e9))
    assert names(tmp_path) == ["run"]
    again = replace(request_, learning_rate=1e9, resume=True)
    with pytest.raises(TrainingError):
        run(again)


class Full(StopAt):
    """A progress that fails as a full disk does."""

    def advance(self, done, **fields):
        if done == self.step:
            raise OSError(28, "No space left on device")


def test_run_that_met_a_full_disk_goes_on_when_there_is_room(request_, tmp_path):
    run(replace(request_, out=tmp_path / "whole"))
    with pytest.raises(DiskError, match=r"cannot write '.*run\.unfinished' \(No space.*; make room"):
        run(request_, progress=Full(5))
    assert RunRecord.read(request_.out).status == "failed"
    run(replace(request_, resume=True))
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert names(tmp_path) == ["run", "whole"]


def test_damaged_start_is_named_with_a_remedy(request_):
    stop(request_)
    file = folder_beside(request_.out) / "start.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(DataError, match=r"start\.json.*--overwrite"):
        run(replace(request_, resume=True))
    assert run(replace(request_, overwrite=True)).status == "done"


@pytest.mark.parametrize("use", ["run", "evaluate"])
def test_state_of_a_run_killed_after_its_result_was_in_place_goes(use, request_, tmp_path):
    stop(request_)
    shutil.copytree(folder_beside(request_.out), tmp_path / "copy")
    run(replace(request_, resume=True))
    (tmp_path / "copy").rename(folder_beside(request_.out))
    if use == "evaluate":
        assert open_trained(request_.out).record is not None
    else:
        with pytest.raises(OutputExistsError, match="--overwrite"):
            run(request_)
    assert names(tmp_path) == ["run"]


def test_state_of_a_run_that_began_anew_stays(request_, tmp_path):
    run(request_)
    with pytest.raises(KeyboardInterrupt):
        run(replace(request_, overwrite=True, seed=1), progress=StopAt(5))
    assert open_trained(request_.out).record is not None
    assert names(tmp_path) == ["run", "run.unfinished"]


def test_earlier_run_moved_aside_by_a_killed_process_is_put_back(tmp_path):
    (tmp_path / "run.unfinished" / ".old").mkdir(parents=True)
    (tmp_path / "run.unfinished" / ".old" / "run.json").touch()
    restore_run(tmp_path / "run", tmp_path / "run.unfinished")
    assert names(tmp_path / "run") == ["run.json"]


def test_suite_goes_on_with_its_unfinished_run(request_, tmp_path):
    class Recorder(Trainer):
        def __call__(self, request, *, progress=None):
            resumed[request.out.name] = request.resume
            return super().__call__(request, progress=progress)

    resumed: dict[str, bool] = {}
    stop(request_)
    run_all([request_, replace(request_, out=tmp_path / "other")], executor=Inline(Recorder()))
    assert resumed == {"run": True, "other": True}
    run_all([request_], executor=Inline(Recorder()), overwrite=True)
    assert resumed["run"] is False


def test_suite_that_changed_refuses_its_unfinished_run_before_anything_is_trained(request_, tmp_path):
    stop(request_)
    trainer = Trainer()
    changed = [replace(request_, out=tmp_path / "other"), replace(request_, steps=9)]
    with pytest.raises(SpecError, match="steps was 7 and is 9"):
        run_all(changed, executor=Inline(trainer))
    assert trainer.asked == []
    run_all(changed, executor=Inline(trainer), overwrite=True)
    assert trainer.asked == ["other", "run"]


def test_folder_of_an_unfinished_run_lies_beside_the_run():
    assert folder_beside(Path("/runs/a.b")) == Path("/runs/a.b.unfinished")


def test_state_that_a_kill_left_beside_a_finished_run_is_deleted(request_, tmp_path):
    stop(request_)
    folder = folder_beside(request_.out)
    shutil.copytree(folder, tmp_path / "copy")
    done = run(replace(request_, resume=True))
    (tmp_path / "copy").rename(folder)
    assert run(replace(request_, resume=True)) == done
    assert not folder.exists()
