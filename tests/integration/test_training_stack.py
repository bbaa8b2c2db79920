"""Checkpointing, autocast, compilation, distribution and the Trainer treat our layers like any others."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from rankfold import AuxiliaryLossMixin, auxiliary_loss
from rankfold.factors import relay
from tests.integration.models import METHODS, adapted, bert, config_of, ids, learned, scores, t5, train
from tests.support.tolerance import assert_close

ALL = pytest.mark.parametrize("method", METHODS)
LABELS = torch.arange(6) % 3
# One method for each structure of the forward pass: plain, relayed, with core and scale, routed, experts.
STRUCTURES = pytest.mark.parametrize("method", ["lora", "relayed_lora", "tlora", "graph_moe", "mix_lora"])


class RoutedTrainer(AuxiliaryLossMixin, Trainer):
    """The Trainer of users of routers."""


def gradients(model, *, balanced=False):
    model.train()
    loss = model(input_ids=ids(), labels=LABELS).loss
    (loss + auxiliary_loss(model) if balanced else loss).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], what=name)


@ALL
@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
def test_gradient_checkpointing_gives_the_same_gradients(method, reentrant):
    expected = gradients(adapted(config_of(method)))
    base = bert()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model = adapted(config_of(method), base)
    model.enable_input_require_grads()
    assert_same_gradients(gradients(model), expected)


@ALL
def test_every_learned_number_gets_a_gradient_and_nothing_else_does(method):
    model = adapted(config_of(method))
    got = gradients(model, balanced=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in got.values())
    assert got.keys() >= learned(model).keys()
    others = [p for name, p in model.named_parameters() if name not in got]
    assert all(parameter.grad is None for parameter in others)


@ALL
def test_autocast_computes_in_bfloat16_and_trains_in_float32(method):
    model = adapted(config_of(method))
    expected = scores(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(scores(model).float(), expected, dtype=torch.bfloat16)
        got = gradients(model)
    assert {gradient.dtype for gradient in got.values()} == {torch.float32}
    assert all(torch.isfinite(gradient).all() for gradient in got.values())


@pytest.mark.usefixtures("unchecked_shapes")
@STRUCTURES
def test_compiled_model_is_one_graph_with_the_same_scores(method):
    model = adapted(config_of(method))
    expected = scores(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(scores(compiled), expected)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("method", ["lora", "tlora"])
def test_compiled_model_learns_the_same(method):
    torch.compiler.reset()
    plain, compiled = (adapted(config_of(method), bert(num_hidden_layers=1)) for _ in range(2))
    losses = train(plain, steps=3)
    assert train(torch.compile(compiled, fullgraph=True, backend="aot_eager"), steps=3) == pytest.approx(
        losses, rel=1e-4
    )


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.filterwarnings("ignore:k=:rankfold.RankfoldWarning", "ignore:map=:rankfold.RankfoldWarning")
@pytest.mark.parametrize("order", relay.RELAY_MAPS)
def test_compiled_relays_of_several_sizes_learn_the_same(order):
    torch.compiler.reset()
    config = config_of(
        "relayed_lora", map=order, target_modules=["query", "intermediate.dense", "output.dense"]
    )
    plain, compiled = (adapted(config, bert(num_hidden_layers=1)) for _ in range(2))
    losses = train(plain, steps=3)
    assert train(torch.compile(compiled, fullgraph=True, backend="aot_eager"), steps=3) == pytest.approx(
        losses, rel=1e-4
    )


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("method", ["lora", "relayed_lora", "tlora"])
def test_exported_program_gives_the_same_scores_and_the_model_still_learns(method):
    model = adapted(config_of(method))
    expected = scores(model)
    relay._cached_positions.cache_clear()
    program = torch.export.export(model, (), {"input_ids": ids()})
    assert_close(scores(program.module()), expected)
    assert torch.equal(scores(model), expected)
    assert train(model) == train(adapted(config_of(method)))


@pytest.mark.usefixtures("unchecked_shapes")
# From 2.14 on, torch calls tracing deprecated in a FutureWarning.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
@STRUCTURES
def test_traced_program_gives_the_same_scores_and_the_model_still_learns(method):
    model = adapted(config_of(method))
    program = torch.jit.trace(model.base_model.model, (ids(),), strict=False, check_trace=False)
    for tokens in (ids(), ids(rows=2, seed=5)):
        with torch.no_grad():
            assert_close(program(tokens)["logits"], model(input_ids=tokens).logits)
    assert train(model) == train(adapted(config_of(method)))


def trainer(model, folder):
    rows = [
        {"input_ids": row, "labels": label} for row, label in zip(ids(24), torch.arange(24) % 3, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=6,
        learning_rate=1e-2,
        save_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return RoutedTrainer(model=model, args=arguments, train_dataset=rows)


@STRUCTURES
def test_trainer_that_is_stopped_in_an_epoch_and_resumed_learns_the_same(method, tmp_path):
    whole = adapted(config_of(method, dropout=0.2))
    trainer(whole, tmp_path).train()
    again = adapted(config_of(method, dropout=0.2))
    trainer(again, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    fresh = learned(adapted(config_of(method)))
    for name, parameter in learned(whole).items():
        assert torch.equal(learned(again)[name], parameter), name
        assert not torch.equal(fresh[name], parameter)


@pytest.mark.parametrize("answer_length", [4, 8], ids=["of_other_length", "of_the_same_length"])
def test_trainer_does_not_take_the_mask_of_an_encoder_for_the_tokens_of_its_decoder(answer_length, tmp_path):
    config = config_of("mola", balance_loss=0.5, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = adapted(config, t5()).train()
    mask = torch.ones(6, 8)
    mask[:, 5:] = 0
    inputs = {"input_ids": ids(length=8), "attention_mask": mask, "labels": ids(length=answer_length)}
    stack = trainer(model, tmp_path)
    with torch.random.fork_rng():
        expected = model(**inputs).loss + auxiliary_loss(model)
    assert torch.equal(stack.compute_loss(model, dict(inputs)), expected)
