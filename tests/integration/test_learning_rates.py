"""A Trainer of the user's own trains with our groups, scheduled, whichever way they get into it."""

import peft
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import rankfold
from tests.integration.models import bert, ids, learned

LR, STEPS = 1e-3, 4


class RateWatch(TrainerCallback):
    """Remembers the rate of every group, by name, at every step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.seen.append({group.get("name"): group["lr"] for group in optimizer.param_groups})


def tri(seed=0):
    config = rankfold.config(
        "tlora_plus", r=4, target_modules=["query", "value"], task_type="SEQ_CLS", seed=seed
    )
    return peft.get_peft_model(bert(), config)


def trainable(model, folder, **how):
    """Train a model and return the rates of each step."""
    rows = [
        {"input_ids": row, "labels": label} for row, label in zip(ids(24), torch.arange(24) % 3, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=6,
        learning_rate=LR,
        lr_scheduler_type="linear",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    watch = RateWatch()
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[watch], **how).train()
    return watch.seen


def make(model, **options):
    return {"optimizers": (rankfold.optimizer(model, torch.optim.AdamW, lr=LR, **options), None)}


def by_class(model, **options):
    groups = rankfold.parameter_groups(model, lr=LR, **options)
    return {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"params": groups})}


def by_factory(_model, **options):
    keywords = {"optimizer_class": torch.optim.AdamW, "lr": LR, **options}
    return {"optimizer_cls_and_kwargs": (lambda: rankfold.optimizer, keywords)}


@pytest.mark.parametrize("way", [make, by_class, by_factory])
def test_trainer_schedules_every_group_by_its_own_rate(way, tmp_path):
    model = tri()
    seen = trainable(model, tmp_path, **way(model, tlora_ratio=4))
    assert len(seen) == STEPS
    for step, rates in enumerate(seen):
        base = LR * (STEPS - step) / STEPS
        expected = {"down": base, "core x8": 8 * base, "up x2": 2 * base, "head": base}
        assert rates == pytest.approx(expected)


@pytest.mark.parametrize("way", [by_class, by_factory])
def test_every_way_into_the_trainer_learns_the_same(way, tmp_path):
    one, two = tri(), tri()
    trainable(one, tmp_path, **make(one, loraplus_ratio=16))
    trainable(two, tmp_path, **way(two, loraplus_ratio=16))
    other = learned(two)
    assert all(torch.equal(value, other[name]) for name, value in learned(one).items())


def test_a_ratio_changes_what_is_learned_and_a_ratio_of_one_does_not(tmp_path):
    plain, one, four = tri(), tri(), tri()
    trainable(plain, tmp_path)
    trainable(one, tmp_path, **by_factory(one, tlora_ratio=1, fused=True))  # as the Trainer's own
    trainable(four, tmp_path, **by_factory(four, tlora_ratio=4, fused=True))
    for name, value in learned(plain).items():
        assert torch.equal(learned(one)[name], value)
        assert not torch.equal(learned(four)[name], value)
