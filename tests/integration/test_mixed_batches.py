"""One batch for many adapters gives each row the output of a pass of its own."""

from functools import partial

import pytest
import torch
from transformers import GenerationConfig

from tests.integration.models import (
    FOLDABLE,
    METHODS,
    PICTURE_TARGETS,
    VOCABULARY,
    adapted,
    config_of,
    gpt2,
    ids,
    picture,
    scores,
    t5,
)
from tests.support.tolerance import assert_close

ALL = pytest.mark.parametrize("method", METHODS)
ROWS = ["first", "__base__", "second", "second", "first", "__base__"]


def mixed_scores(method, base=None, **options):
    """A model with two adapters: one of the method under test, one of LoRA on fewer layers."""
    model = adapted(config_of(method, **options), base, adapter_name="first")
    other = {**options, "target_modules": config_of(method, **options).target_modules}
    other["target_modules"] = sorted(other["target_modules"])[:1]
    model.add_adapter("second", config_of("lora", seed=7, **other))
    return model.eval()


def one_at_a_time(model, run):
    """Each row of ROWS from a pass of its own."""
    outputs = {}
    with model.disable_adapter():
        outputs["__base__"] = run()
    for name in ("first", "second"):
        model.set_adapter(name)
        outputs[name] = run()
    assert not torch.equal(outputs["first"], outputs["second"])
    assert not torch.equal(outputs["first"], outputs["__base__"])
    return torch.stack([outputs[name][row] for row, name in enumerate(ROWS)])


@ALL
def test_mixed_batch_equals_separate_passes(method):
    model = mixed_scores(method)
    assert_close(scores(model, adapter_names=ROWS), one_at_a_time(model, lambda: scores(model)))


@pytest.mark.parametrize("method", FOLDABLE)
def test_mixed_batch_equals_separate_passes_when_layers_are_convolutions_and_embeddings(method):
    model = mixed_scores(method, picture(), target_modules=PICTURE_TARGETS, task_type=None)
    assert_close(scores(model, adapter_names=ROWS), one_at_a_time(model, lambda: scores(model)))


def test_mixed_batch_uses_the_head_of_each_adapter():
    model = mixed_scores("relayed_lora")
    heads = model.base_model.model.classifier.modules_to_save
    with torch.no_grad():
        heads["first"].bias.add_(1.0)
        heads["second"].bias.sub_(1.0)
    assert_close(scores(model, adapter_names=ROWS), one_at_a_time(model, lambda: scores(model)))


def generate(model, **options):
    return model.generate(
        input_ids=ids(length=5),
        attention_mask=torch.ones(6, 5, dtype=torch.long),
        max_new_tokens=6,
        do_sample=False,
        **options,
    )


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    ("base", "targets", "task"),
    [(gpt2, ["c_attn", "c_fc"], "CAUSAL_LM"), (t5, ["q", "v", "wo"], "SEQ_2_SEQ_LM")],
    ids=["gpt2", "t5"],
)
def test_mixed_generation_equals_separate_passes(base, targets, task, beams):
    model = mixed_scores("relayed_lora", base(), target_modules=targets, task_type=task, alpha=64.0)
    together = generate(model, num_beams=beams, adapter_names=ROWS)
    assert torch.equal(together, one_at_a_time(model, lambda: generate(model, num_beams=beams)))
    assert together.max() < VOCABULARY


@pytest.mark.parametrize(
    "options",
    [
        {"num_return_sequences": 2, "num_beams": 3},
        {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=6, do_sample=False)},
        {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
    ],
    ids=["sequences of beams", "configuration", "samples"],
)
@pytest.mark.parametrize("is_default", [False, True])
@pytest.mark.parametrize(
    ("base", "targets", "task"),
    [(gpt2, ["c_attn", "c_fc"], "CAUSAL_LM"), (t5, ["q", "v", "wo"], "SEQ_2_SEQ_LM")],
    ids=["gpt2", "t5"],
)
def test_every_sequence_of_a_row_is_generated_by_its_adapter(base, targets, task, options, is_default):
    model = mixed_scores("relayed_lora", base(), target_modules=targets, task_type=task, alpha=64.0)
    if is_default:
        defaults = options.get("generation_config", GenerationConfig(max_new_tokens=6, **options))
        defaults.decoder_start_token_id = 0
        model.get_base_model().generation_config = defaults
        options = {}
    run = partial(
        model.generate, input_ids=ids(length=6), attention_mask=torch.ones(6, 6).long(), pad_token_id=0
    )
    options = {"max_new_tokens": 6, **options}
    together = run(adapter_names=ROWS, **options)
    copies = len(together) // len(ROWS)
    alone = one_at_a_time(model, lambda: run(**options).unflatten(0, (len(ROWS), copies)))
    assert torch.equal(together, alone.flatten(0, 1))


def test_mixed_batch_leaves_no_hooks():
    model = mixed_scores("relayed_lora")
    scores(model, adapter_names=ROWS)  # heads get one for good
    before = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    scores(model, adapter_names=ROWS)
    with pytest.raises(ValueError, match="adapter_names"):
        scores(model, adapter_names=ROWS[:2])
    assert before == {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"third.*loaded are first, second"):
        scores(mixed_scores("lora"), adapter_names=[*ROWS[:5], "third"])


def test_mixed_batch_is_refused_when_training():
    with pytest.raises(ValueError, match="training mode"):
        scores(mixed_scores("lora").train(), adapter_names=ROWS)


def test_mixed_batch_is_refused_when_merged():
    model = mixed_scores("lora")
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged adapters"):
        scores(model, adapter_names=ROWS)


def test_mixed_batch_of_the_base_alone_equals_the_base():
    model = mixed_scores("tlora")
    with model.disable_adapter():
        base = scores(model)
    assert torch.equal(scores(model, adapter_names=["__base__"] * 6), base)


def test_mixed_batch_with_many_presets_equals_separate_passes():
    names = list(METHODS)
    model = adapted(config_of(names[0]), adapter_name=names[0])
    for position, name in enumerate(names[1:]):
        # Routers of whole MLPs need both of their layers, which "dense" names.
        targets = ["query", "dense"] if position % 2 else ["value", "dense"]
        model.add_adapter(name, config_of(name, target_modules=targets, seed=position))
    model.eval()
    rows = [name for name in names for _ in range(2)]
    tokens = ids(rows=len(rows))
    with torch.no_grad():
        together = model(input_ids=tokens, adapter_names=rows).logits
        for row in range(0, len(rows), 2):
            model.set_adapter(rows[row])
            assert_close(together[row : row + 2], model(input_ids=tokens).logits[row : row + 2])
