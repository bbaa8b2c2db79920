"""Checkpoints: a training goes on from the newest whole one, bit for bit, with the state of its callbacks."""

import json
import os
import pkgutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rankfold.errors import CheckpointError, TrainingError
from rankfold.models.base import resolve_model
from rankfold.tasks.kinds import Evaluation, Learner
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.labelled import Example
from rankfold.train.checkpoint import SEAL, Checkpoints, is_complete, restore_callbacks, seal
from rankfold.train.held_out import HeldOut
from rankfold.train.schedule import Schedule
from rankfold.train.trainer import train_model
from tests.support.tiny_models import review_rows

STEPS, STEPS_OF_AN_EPOCH = 11, 4


class Pacer(TrainerCallback, ExportableState):
    """Changes the training by what it remembers: it shrinks every gradient by a factor that it draws."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(7)
        self.factors = []

    @property
    def generator_state(self):
        return self.generator.get_state().tolist()

    @generator_state.setter
    def generator_state(self, value):
        self.generator.set_state(torch.tensor(value, dtype=torch.uint8))

    def state(self):
        return {
            "args": {},
            "attributes": {"factors": self.factors, "generator_state": self.generator_state},
        }

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.factors.append(torch.rand((), generator=self.generator).item())
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.factors[-1]


class Stop(TrainerCallback):
    """Ends the process, as far as the training can tell, before the update after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def train(tiny_bert):
    """Return a function that trains LoRA with dropout and returns weights, curve and the callback's draws."""

    def run(checkpoints=None, *, stop_after=None, **schedule):
        torch.manual_seed(0)
        loaded = CLASSIFICATION.load(resolve_model(str(tiny_bert)), ("bad", "good"))
        config = LoraConfig(
            r=4,
            target_modules=["query", "value"],
            task_type="SEQ_CLS",
            lora_dropout=0.2,
            init_lora_weights=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(loaded.model, config)
        examples = [Example(i, row["sentence"], None, row["label"]) for i, row in enumerate(review_rows(32))]
        pacer, learner = Pacer(), Learner(model, loaded.processor, 32)
        curve = train_model(
            model,
            CLASSIFICATION.encode(learner, examples, training=True),
            Schedule(**{"steps": STEPS, "batch_size": 8, "learning_rate": 1e-2, **schedule}),
            collate=CLASSIFICATION.collate(learner),
            device=torch.device("cpu"),
            held_out=HeldOut(
                lambda _: Evaluation(float(sum(p.sum() for p in trained(model).values())), {}), 16, "epochs"
            ),
            checkpoints=checkpoints,
            callbacks=[pacer] if stop_after is None else [pacer, Stop(stop_after)],
        )
        return trained(model), curve, pacer.factors

    return run


def trained(model):
    return {
        name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert (one[1].train, one[1].validation, one[2]) == (other[1].train, other[1].validation, other[2])


@pytest.fixture(scope="module")
def whole(train):
    """What a training that nobody stops comes to."""
    return train()


def stop(train, checkpoints, after):
    with pytest.raises(KeyboardInterrupt):
        train(checkpoints, stop_after=after)


@pytest.mark.parametrize(
    ("every", "after"),
    [
        (1, 2),
        (2, STEPS_OF_AN_EPOCH + 3),
        (4, STEPS_OF_AN_EPOCH),
        (4, 2 * STEPS_OF_AN_EPOCH),
        (5, STEPS - 1),
        (5, 3),
    ],
    ids=["in an epoch", "in the next", "at its end", "at the end of another", "before the end", "too soon"],
)
def test_training_stopped_anywhere_ends_as_if_it_had_not_been(train, whole, tmp_path, every, after):
    checkpoints = Checkpoints(tmp_path, every)
    stop(train, checkpoints, after)
    assert (checkpoints.newest() is None) == (after < every)
    assert_same(train(checkpoints), whole)


def test_training_stopped_again_and_again_ends_the_same(train, whole, tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    for after in (3, 4, 9):
        stop(train, checkpoints, after)
    assert_same(train(checkpoints), whole)


def test_making_checkpoints_changes_nothing(train, whole, tmp_path):
    assert_same(train(Checkpoints(tmp_path, 1)), whole)
    # The last update has none: transformers would make another from there.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_resumed_training_goes_on_without_making_checkpoints_if_told_so(train, whole, tmp_path):
    stop(train, Checkpoints(tmp_path, 3), 7)
    (tmp_path / "checkpoint-9").mkdir()  # cut off in the writing
    assert_same(train(Checkpoints(tmp_path, 0)), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6"]


def test_seconds_of_a_resumed_training_include_those_before(train, tmp_path):
    checkpoints = Checkpoints(tmp_path, 3)
    stop(train, checkpoints, 7)
    state = json.loads((checkpoints.newest() / "trainer_state.json").read_text())
    earlier = state["stateful_callbacks"]["Listener"]["attributes"]["earlier_seconds"]
    curve = train(checkpoints)[1]
    assert curve.earlier_seconds == earlier > 0
    assert curve.train_seconds + curve.evaluate_seconds > earlier


@pytest.fixture
def two_checkpoints(tmp_path):
    """A folder with two whole checkpoints of three files each."""
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "more").mkdir(parents=True)
        for name in ("weights", "optimiser", "more/state"):
            (tmp_path / f"checkpoint-{step}" / name).write_bytes(bytes(100))
        seal(tmp_path / f"checkpoint-{step}")
    return tmp_path


DAMAGE = {
    "a file is cut off": lambda folder: os.truncate(folder / "weights", 50),
    "a file is missing": lambda folder: (folder / "more" / "state").unlink(),
    "a bit has changed": lambda folder: (folder / "optimiser").write_bytes(bytes(99) + b"\1"),
    "there is no seal": lambda folder: (folder / SEAL).unlink(),
    "the seal is cut off": lambda folder: os.truncate(folder / SEAL, 50),
    "the seal is empty": lambda folder: os.truncate(folder / SEAL, 0),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_checkpoint_does_not_count_when(two_checkpoints, damage):
    checkpoints, newest = Checkpoints(two_checkpoints, 1), two_checkpoints / "checkpoint-4"
    assert checkpoints.newest() == newest
    damage(newest)
    assert not is_complete(newest)
    assert checkpoints.newest() == two_checkpoints / "checkpoint-2"
    checkpoints.remove_partial()
    assert [path.name for path in two_checkpoints.iterdir()] == ["checkpoint-2"]


def edit_tensors(file, change):
    tensors = load_file(file)
    name = min(name for name in tensors if "lora_A" in name)
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def edit_pickle(file, change):
    content = torch.load(file, weights_only=False)
    change(content)
    torch.save(content, file)


def edit_state(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


WEIGHTS = "adapter_model.safetensors"
RESEALED = [
    ("not finite", lambda f: edit_tensors(f / WEIGHTS, lambda t: t.fill_(float("nan")))),
    ("(5, 32)", lambda f: edit_tensors(f / WEIGHTS, lambda t: torch.zeros(5, 32))),
    ("int32", lambda f: edit_tensors(f / WEIGHTS, lambda t: t.int())),
    ("'optimizer.pt' is missing", lambda f: (f / "optimizer.pt").unlink()),
    (
        "'optimizer.pt' has values",
        lambda f: edit_pickle(f / "optimizer.pt", lambda o: o["state"][0]["exp_avg"].fill_(float("inf"))),
    ),
    (
        "has shape (1, 3)",
        lambda f: edit_pickle(
            f / "optimizer.pt", lambda o: o["state"][0].update(exp_avg_sq=torch.ones(1, 3))
        ),
    ),
    ("cannot be read", lambda f: (f / "optimizer.pt").write_bytes(b"nothing")),
    (
        "different number of parameter groups",
        lambda f: edit_pickle(f / "optimizer.pt", lambda o: o["param_groups"].append(o["param_groups"][0])),
    ),
    ("of step 900", lambda f: edit_state(f / "trainer_state.json", global_step=900)),
    ("of step 0 ", lambda f: edit_state(f / "trainer_state.json", global_step=0)),
    (
        "'scheduler.pt' is of step 40",
        lambda f: edit_pickle(f / "scheduler.pt", lambda o: o.update(last_epoch=40)),
    ),
    ("cannot be read (", lambda f: (f / "rng_state.pth").write_bytes(b"nothing")),
    ("cannot be read ('", lambda f: edit_state(f / "trainer_state.json", stateful_callbacks=3)),
]


@pytest.mark.parametrize(("fault", "change"), RESEALED)
def test_checkpoint_that_was_changed_and_sealed_again_is_refused_by_name(train, tmp_path, fault, change):
    checkpoints = Checkpoints(tmp_path, 2)
    stop(train, checkpoints, 7)
    change(newest := checkpoints.newest())
    (newest / SEAL).unlink()
    seal(newest)
    with pytest.raises(CheckpointError) as error:
        train(checkpoints)
    assert "checkpoint-6' is not of this run: " in str(error.value)
    assert fault in str(error.value)
    assert "add --resume" in str(error.value)
    assert (tmp_path / "checkpoint-4").is_dir()


def test_training_passes_over_a_damaged_checkpoint(train, whole, tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    stop(train, checkpoints, 7)
    os.truncate(tmp_path / "checkpoint-6" / "optimizer.pt", 100)
    assert checkpoints.newest() == tmp_path / "checkpoint-4"
    assert_same(train(checkpoints), whole)


@pytest.mark.parametrize(
    ("function", "file"),
    [
        ("torch.save", "optimizer.pt"),
        ("torch.save", "rng_state.pth"),
        ("transformers.trainer_callback.TrainerState.save_to_json", "trainer_state.json"),
        ("rankfold.train.checkpoint.sha256_of_file", "adapter_config.json"),
        ("pathlib.Path.replace", SEAL),
    ],
)
def test_stop_in_the_writing_of_a_checkpoint_loses_none_before_it(
    train, whole, tmp_path, monkeypatch, function, file
):
    checkpoints = Checkpoints(tmp_path, 2)

    def interrupted(*args, **kwargs):
        if any(str(each).endswith(f"checkpoint-6/{file}") for each in args):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = pkgutil.resolve_name(function)
    with monkeypatch.context() as patch:
        patch.setattr(function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoints)
    assert (tmp_path / "checkpoint-6").is_dir()
    assert checkpoints.newest() == tmp_path / "checkpoint-4"
    assert_same(train(checkpoints), whole)
    assert all(is_complete(path) for path in tmp_path.iterdir())


def test_newest_checkpoint_has_the_highest_step_and_not_the_last_name(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "file").write_text(str(step))
        seal(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert Checkpoints(tmp_path, 1).newest() == tmp_path / "checkpoint-10"
    Checkpoints(tmp_path, 1).remove_partial()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-9",
        "checkpoint-best",
    ]


def test_each_of_several_callbacks_of_one_class_gets_its_own_state_back():
    one, two = Pacer(), Pacer()
    # The first two are from the start, as transformers leaves them in.
    states = [{"attributes": {"factors": [step]}} for step in (0, 0, 1, 2)]
    restore_callbacks([one, Stop(1), two], {"Pacer": states})
    assert (one.factors, two.factors) == ([1], [2])


def test_callback_whose_state_is_not_in_the_checkpoint_is_named():
    with pytest.raises(TrainingError, match="no state of 'Pacer'"):
        restore_callbacks([Pacer()], {"TrainerControl": {"attributes": {}}})
