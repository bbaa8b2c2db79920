"""Options of a training: each changes how a step is computed, and the laws say what must stay the same."""

from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch

from rankfold.errors import SpecError
from rankfold.runs.prepare import prepare
from rankfold.runs.request import RunRequest
from rankfold.train.schedule import QUANTISED_OPTIMIZERS, OptimizerName, updates_of_epoch
from rankfold.train.trainer import train_model
from tests.support.tiny_models import GOOD, review_rows, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ROUNDING = 1e-11


@pytest.fixture(params=["classification", "instruction", "weighted", "tokens"])
def trained(request, tiny_bert, reviews, tiny_llama, questions, tmp_path):
    """Return a function that trains a tiny model in float64 with options, and returns weights and losses."""
    model, data = (tiny_llama, questions) if request.param == "instruction" else (tiny_bert, reviews)
    chosen = {"class_weights": "balanced"} if request.param == "weighted" else {}
    if request.param == "weighted":
        rows = [row for row in review_rows(48) if row["label"] or row["sentence"] < "m"]
        data = write_splits(tmp_path / "data", train=rows, validation=review_rows(8))
    elif request.param == "tokens":
        tagged = [
            {"tokens": words, "tags": ["GOOD" if word in GOOD else "O" for word in words]}
            for words in (
                row["sentence"].split()[: 2 + index % 3] for index, row in enumerate(review_rows(24))
            )
        ]
        data = write_splits(tmp_path / "data", train=tagged, validation=tagged)

    def train(*, batches=None, **options):
        values = {"method": "lora", "steps": 4, "batch_size": 6, "learning_rate": 0.1, "optimizer": "sgd"}
        run = RunRequest(
            model=str(model),
            data=str(data),
            out=tmp_path / "run",
            max_length=32,
            train_rows=11,
            **{**values, **chosen, **options},
        )
        setup = prepare(run)
        setup.model.double()
        for module in setup.model.modules():  # it would be drawn for each batch
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        collate = setup.data.kind.collate(setup.learner)

        def recording_collate(rows):
            if batches is not None:
                batches.append([row["input_ids"] for row in rows])
            return collate(rows)

        curve = train_model(
            setup.model,
            setup.rows,
            setup.schedule,
            collate=recording_collate,
            kind=setup.data.kind,
            device=setup.device,
            groups=setup.groups,
        )
        weights = [item.detach() for item in setup.model.parameters() if item.requires_grad]
        return weights, [point["loss"] for point in curve.train]

    return train


def assert_equal(one, other):
    for left, right in zip(one[0], other[0], strict=True):
        assert torch.allclose(left, right, rtol=ROUNDING, atol=ROUNDING)
    # transformers computes the loss of tokens in float32.
    assert one[1] == pytest.approx(other[1], rel=1e-6)


@pytest.mark.parametrize(("batch", "batches"), [(2, 3), (1, 6), (3, 2)])
def test_batches_of_an_update_are_one_batch_of_all_their_rows(trained, batch, batches):
    """Also in the last update of an epoch, with fewer rows, and where answers have different lengths."""
    assert updates_of_epoch(11, batch, batches) == updates_of_epoch(11, 6) == 2
    assert_equal(trained(), trained(batch_size=batch, gradient_accumulation=batches))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "relayed_lora", "options": {"r": 4, "k": 2}},
        {"method": "mix_lora", "options": {"r": 2, "dropout": 0.0}},
        {"reducer": {"active_fraction": 0.5, "select": "random"}},
    ],
    ids=str,
)
def test_activations_that_are_computed_again_give_the_same_gradients(trained, options):
    assert_equal(trained(**options), trained(**options, gradient_checkpointing=True))


@pytest.mark.parametrize("trained", ["classification"], indirect=True)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimiser_takes_learning_rates_by_role(trained, name):
    if name in QUANTISED_OPTIMIZERS:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    train = partial(trained, optimizer=name, learning_rate=1e-3, steps=3)
    slow, fast = (train(lr_groups={"down": factor, "up": 2.0}) for factor in (1e-9, 1.0))
    assert any(not torch.equal(left, right) for left, right in zip(slow[0], fast[0], strict=True))
    assert all(loss > 0 for loss in fast[1])


@pytest.mark.parametrize("trained", ["classification"], indirect=True)
def test_batches_of_similar_lengths_hold_every_row_once_in_each_epoch(trained):
    batches, by_chance = [], []
    trained(group_by_length=True, batch_size=3, steps=8, batches=batches)
    trained(batch_size=3, steps=8, batches=by_chance)
    epochs = [sorted(row for batch in part for row in batch) for part in (batches[:4], batches[4:8])]
    assert epochs[0] == epochs[1] == sorted(row for batch in by_chance[:4] for row in batch)
    assert batches[:4] != batches[4:8]
    waste, chance = (
        sum(max(map(len, batch)) * len(batch) - sum(map(len, batch)) for batch in part[:8])
        for part in (batches, by_chance)
    )
    assert waste <= chance


@pytest.mark.parametrize("trained", ["classification"], indirect=True)
def test_gradients_are_scaled_down_to_a_norm(trained):
    before, _ = trained(steps=1, learning_rate=1e-12)
    for norm in (0.01, 0.02):
        after, _ = trained(steps=2, warmup=0.0, scheduler="constant", learning_rate=1.0, max_grad_norm=norm)
        moved = sum(float((one - two).square().sum()) for one, two in zip(before, after, strict=True)) ** 0.5
        assert moved <= 2 * norm * 1.01


def test_missing_package_of_an_optimiser_is_named(monkeypatch):
    from rankfold.runs import check

    find_spec = check.find_spec
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    request = RunRequest(model="m", method="lora", out="new", optimizer="adamw_8bit")
    with pytest.raises(SpecError, match=r"--optimizer adamw_8bit .*pip install 'rankfold\[quantise\]'"):
        check.check_packages(request)
    with pytest.raises(SpecError, match=r"--quantise 8bit takes"):
        check.check_packages(replace(request, quantise="8bit"))
    check.check_packages(replace(request, optimizer="sgd"))
