"""The preset `lora` is PEFT's LoRA: same weights, data and curve; and PEFT converts our adapters to it."""

import peft
import pytest
import torch

from tests.integration.models import FOLDABLE, adapted, bert, config_of, ids, scores
from tests.support.tolerance import assert_close

TARGETS = ["query", "value", "dense"]
STEPS = 50


def with_peft(**options):
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS, task_type="SEQ_CLS", **options)
    return peft.get_peft_model(bert(), config)


def as_ours(theirs):
    """Our adapter with the weights of PEFT's: only the names differ."""
    model = adapted(config_of("lora", target_modules=TARGETS, init_weights=True))
    state = {
        name.replace("lora_A", "rankfold_down").replace("lora_B", "rankfold_up"): value.clone()
        for name, value in peft.get_peft_model_state_dict(theirs).items()
    }
    assert not peft.set_peft_model_state_dict(model, state).unexpected_keys
    return model


def losses(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model.train()
    curve = []
    for step in range(STEPS):
        tokens = ids(rows=8, seed=step)
        loss = model(input_ids=tokens, labels=tokens[:, 0] % 3).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


def test_lora_learns_as_peft_learns():
    torch.manual_seed(0)
    theirs = with_peft()
    ours = as_ours(theirs)
    expected = losses(theirs)
    assert losses(ours) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.98 * expected[0]
    assert_close(scores(ours.eval()), scores(theirs.eval()))


def test_lora_starts_with_the_spread_of_peft():
    def spread(model, part):
        factors = [p for name, p in model.named_parameters() if part in name]
        return torch.cat([factor.flatten() for factor in factors]).std().item()

    torch.manual_seed(0)
    theirs, ours = with_peft(), adapted(config_of("lora", target_modules=TARGETS, init_weights=True))
    assert spread(ours, "rankfold_down") == pytest.approx(spread(theirs, "lora_A"), rel=0.1)
    assert spread(ours, "rankfold_up") == spread(theirs, "lora_B") == 0


@pytest.mark.parametrize("method", FOLDABLE)
def test_peft_converts_our_adapter_to_lora(method):
    model = adapted(config_of(method, task_type=None))
    expected = scores(model)
    config, state = peft.convert_to_lora(model, rank=4)
    lora = peft.get_peft_model(bert(), config).eval()
    peft.set_peft_model_state_dict(lora, state)
    assert torch.allclose(scores(lora), expected, atol=1e-5)


def test_peft_converts_one_of_our_adapters_beside_one_whose_gates_read_the_input():
    model = adapted(config_of("lora", task_type=None))
    expected = scores(model)
    model.add_adapter("routed", config_of("hydra_lora", task_type=None))
    config, state = peft.convert_to_lora(model, rank=4)
    lora = peft.get_peft_model(bert(), config).eval()
    peft.set_peft_model_state_dict(lora, state)
    assert torch.allclose(scores(lora), expected, atol=1e-5)
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        peft.convert_to_lora(model, rank=4, adapter_name="routed")


PATTERNS = [
    "query",
    "layer.0.attention.self.query",
    r"layer\.[1-9]\.attention\.self\.value",
    "^bert.encoder.layer.1.attention.self.value",
    "bert.encoder.layer.0.*",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_choose_the_ranks_and_alphas_that_peft_chooses(pattern):
    patterns = {"rank_pattern": {pattern: 3, "value": 2}, "alpha_pattern": {pattern: 9.0, "query": 8.0}}
    ours = adapted(config_of("lora", target_modules=TARGETS, **patterns))
    chosen = {
        path: (module.rankfold_adapters["default"].down.rows, module.rankfold_adapters["default"].scaling)
        for path, module in ours.named_modules()
        if hasattr(module, "rankfold_adapters")
    }
    expected = {
        path: (module.r["default"], module.scaling["default"])
        for path, module in with_peft(**patterns).named_modules()
        if hasattr(module, "lora_A")
    }
    assert chosen == expected
    assert len(set(chosen.values())) > 1
