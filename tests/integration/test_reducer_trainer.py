"""A Reducer as a callback of `transformers.Trainer`: it trains, and goes on from a checkpoint."""

import json

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerCallback

import rankfold
from rankfold import SpecError
from tests.support.reduced import batches, reduced_bert

STEPS, STOP = 11, 5


def rows(count, seed=0):
    return [{name: value[0] for name, value in batch.items()} for batch in batches(count, seed)]


class Recorder(TrainerCallback):
    """Remembers which layers trained in each step, by the gradients that the optimiser saw."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        ups = [value for name, value in model.named_parameters() if "rankfold_up" in name and "query" in name]
        self.seen.append(tuple(layer for layer, value in enumerate(ups) if value.grad is not None))


def trainer(folder, *, loader=(), steps=STEPS, data=None, callbacks=(), dropout=0.2, args=None, **options):
    options = {"active_fraction": 0.5, "interval": 2, "start_step": 2, **options}
    model = reduced_bert("effilora", random_start=False, dropout=dropout)
    ours = rankfold.Reducer(probe_loader=list(loader) or None, **options)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.3,
        save_strategy="steps",
        save_steps=STOP,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **(args or {}),
    )
    recorder = Recorder()
    return (
        Trainer(model, arguments, train_dataset=data or rows(20), callbacks=[ours, recorder, *callbacks]),
        ours,
        recorder,
    )


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("loader", [(), batches(3, seed=9)], ids=["training_rows", "probe_loader"])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(tmp_path, loader):
    whole, uncut, recorder = trainer(tmp_path / "whole", loader=loader, resample_every=3)
    whole.train()
    assert any(uncut.scores.importance)
    second, resumed, seen = trainer(tmp_path / "cut", loader=loader, resample_every=3)
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{STOP}"))
    assert seen.seen == recorder.seen[STOP:]
    assert resumed.scores == uncut.scores
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name


def test_the_layers_that_were_drawn_are_those_that_learn(tmp_path):
    made, ours, recorder = trainer(tmp_path)
    made.train()
    assert [len(layers) for layers in recorder.seen] == [2] * STEPS
    assert len(set(recorder.seen)) > 1
    assert sum(ours.scores.trained) == 2 * STEPS
    assert all(value.requires_grad for name, value in made.model.named_parameters() if "rankfold" in name)


def test_accumulated_gradients_are_of_one_choice(tmp_path):
    made, ours, recorder = trainer(tmp_path, args={"gradient_accumulation_steps": 2}, steps=6)
    made.train()
    assert ours.scores.step == 6
    assert [len(layers) for layers in recorder.seen] == [2] * 6


def test_training_again_begins_anew(tmp_path):
    made, ours, _ = trainer(tmp_path, steps=6)
    made.train()
    made.train()
    assert ours.scores.step == 6


def test_a_resumed_run_with_other_options_is_refused(tmp_path):
    trainer(tmp_path)[0].train()
    made, _, _ = trainer(tmp_path, active_fraction=0.25)
    with pytest.raises(
        SpecError, match=r"made with active_fraction=0\.5, but this Reducer has active_fraction=0"
    ):
        made.train(resume_from_checkpoint=True)


def test_a_resumed_run_whose_probes_come_from_elsewhere_is_refused(tmp_path):
    trainer(tmp_path, loader=batches(2))[0].train()
    made, _, _ = trainer(tmp_path)
    with pytest.raises(SpecError, match="took its probes from 'probe_loader', this one from 'training rows'"):
        made.train(resume_from_checkpoint=True)


def test_a_loader_lost_by_restoring_callbacks_is_refused(tmp_path):
    trainer(tmp_path, loader=batches(2))[0].train()
    made, _, _ = trainer(tmp_path, loader=batches(2), args={"restore_callback_states_from_checkpoint": True})
    with pytest.raises(SpecError, match="leave restore_callback_states_from_checkpoint False"):
        made.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_a_reducer_is_refused(tmp_path):
    trainer(tmp_path)[0].train()
    for path in tmp_path.glob("checkpoint-*/trainer_state.json"):
        state = json.loads(path.read_text("utf-8"))
        del state["stateful_callbacks"]["Reducer"]
        path.write_text(json.dumps(state), "utf-8")
    made, _, _ = trainer(tmp_path)
    with pytest.raises(SpecError, match="not written by a training with exactly one Reducer"):
        made.train(resume_from_checkpoint=True)


def test_a_stream_of_training_rows_needs_a_probe_loader(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(rows(20))

    made, _, _ = trainer(tmp_path, data=Stream())
    with pytest.raises(SpecError, match=r"a stream without a length, .*; give the Reducer a probe_loader"):
        made.train()
