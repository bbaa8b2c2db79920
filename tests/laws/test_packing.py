"""Texts side by side in one row: exactly the likelihoods, losses and gradients of each text alone."""

import random
import warnings
from dataclasses import replace

import peft
import pytest
import torch
import transformers

import rankfold
from rankfold.errors import SpecError
from rankfold.tasks.kinds import Learner
from rankfold.tasks.kinds.answers import answer_collator, log_likelihoods
from rankfold.tasks.kinds.instruction import KIND
from rankfold.tasks.kinds.packing import IGNORED_LABEL, SharedPrompt, shared_log_likelihoods

VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
MODELS = {
    "Llama": {},
    "Qwen2": {},
    "GPT2": GPT,
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 8},
    "Olmo2": {},
    "Phi3": {},
}
ROUNDING = {"sdpa": 1e-9, "eager": 1e-6}
"""The eager attention of transformers takes its softmax in single precision, whatever the model's."""

UNABLE = {
    "Bloom": {"n_layer": 2, "n_head": 2},
    "Mamba": {"state_size": 4},
    "Mistral": {"sliding_window": 4},
}


class Processor:
    """As much of a tokenizer as batches need."""

    pad_token_id, padding_side = 0, "right"


def _model(name, options, attention="sdpa"):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    config._attn_implementation = attention
    return (
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    )


def _learner(name, options, attention="sdpa", max_length=64):
    return Learner(_model(name, options, attention), _processor(), max_length, batch_size=3)


def _processor():
    from tests.support.tiny_models import _tokenizer

    tokenizer = _tokenizer()
    tokenizer.pad_token = "[PAD]"
    return tokenizer


def _rows(count, seed=0):
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = [generator.randrange(3, VOCABULARY) for _ in range(generator.randrange(1, 14))]
        answer = [generator.randrange(3, VOCABULARY) for _ in range(generator.randrange(1, 6))]
        ids = [*prompt, *answer]
        labels = [IGNORED_LABEL] * len(prompt) + answer
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows


def _alone(learner, rows):
    """Log-likelihoods by the definition: one text at a time, no mask."""
    totals = []
    for row in rows:
        logits = learner.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        places = [place for place, label in enumerate(row["labels"]) if label != IGNORED_LABEL]
        totals.append(sum(logits[place - 1, row["labels"][place]].item() for place in places))
    return totals


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_row_has_the_likelihoods_of_its_texts(name, attention):
    learner, rows = _learner(name, MODELS[name], attention), _rows(11)
    packs = KIND.pack(learner, rows)
    assert max(len(pack["input_ids"]) for pack in packs) <= learner.max_length
    assert len(packs) < len(rows)
    packed = sum(total for total, _ in log_likelihoods(learner, packs))
    assert packed == pytest.approx(sum(_alone(learner, rows)), rel=ROUNDING[attention])
    assert sum(tokens for _, tokens in log_likelihoods(learner, packs)) == sum(
        tokens for _, tokens in log_likelihoods(learner, rows)
    )


@pytest.mark.parametrize("method", ["lora", "relayed_lora", "mix_lora", "effilora"])
def test_packed_rows_have_the_gradients_of_their_texts(method):
    learner, rows = _learner("Llama", {}), _rows(9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = rankfold.config(method, r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(learner.model, config).double().eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    learner = replace(learner, model=model)
    packs = KIND.pack(learner, rows)
    gradients = []
    for items in (packs, rows):
        model.zero_grad()
        # The mean over the labelled tokens, however they are spread over rows.
        KIND.loss(model, answer_collator(learner)(items)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", UNABLE)
def test_a_model_that_reads_beyond_the_mask_is_refused_for_packing_and_measured_alone(name):
    learner, rows = _learner(name, UNABLE[name], None), _rows(8)
    long = [
        {**row, "input_ids": [5] * 8 + row["input_ids"], "labels": [IGNORED_LABEL] * 8 + row["labels"]}
        for row in rows
    ]
    with pytest.raises(SpecError, match=f"not possible with this model .type '{name.lower()}'"):
        KIND.pack(learner, long)
    prompts = SharedPrompt.group(_compared_rows())
    shared = shared_log_likelihoods(learner, prompts, lambda part: log_likelihoods(learner, part))
    assert [total for total, _ in shared] == pytest.approx(_alone(learner, _compared_rows()), rel=1e-6)


def _compared_rows():
    """Answers of one to five tokens, one to four of them behind each prompt, one of them no choice at all."""
    generator, rows = random.Random(3), []
    for number in range(9):
        prompt = [generator.randrange(3, VOCABULARY) for _ in range(5 + 3 * number)]
        for _ in range(1 + number % 4):
            answer = [generator.randrange(3, VOCABULARY) for _ in range(generator.randrange(1, 6))]
            ids = [*prompt, *answer]
            rows.append(
                {
                    "input_ids": ids,
                    "attention_mask": [1] * len(ids),
                    "labels": [IGNORED_LABEL] * len(prompt) + answer,
                }
            )
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_behind_a_shared_prompt_are_as_likely_as_alone(name, attention):
    learner, rows = _learner(name, MODELS[name], attention), _compared_rows()
    prompts = SharedPrompt.group(rows)
    assert len(prompts) == 9
    calls = []

    def alone(part):
        calls.append(len(part))
        return log_likelihoods(learner, part)

    shared = shared_log_likelihoods(learner, prompts, alone)
    assert len(calls) == 1  # to try it, on the shortest prompt with several answers
    assert calls[0] < len(rows) / 2
    assert [total for total, _ in shared] == pytest.approx(_alone(learner, rows), rel=ROUNDING[attention])
    assert [tokens for _, tokens in shared] == [tokens for _, tokens in log_likelihoods(learner, rows)]
