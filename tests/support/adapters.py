"""Adapters on the tiny models, saved in folders without being trained: they start at random."""

import json

import peft
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import rankfold
from rankfold.progress import quiet_libraries
from tests.support.toys import toy_sizes_allowed

SMALL = {"r": 3, "k": 2, "inner": 2, "heads": 2, "top_k": 1, "dropout": 0.0}


def save_adapter(folder, base, method="relayed_lora", **options):
    """Write an adapter of a classifier, or of a model that continues text, and return its folder."""
    is_causal = "llama" in base.name
    with quiet_libraries(), toy_sizes_allowed():
        if is_causal:
            model, task_type = AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM"
        else:
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
            task_type = "SEQ_CLS"
        own = rankfold.presets.discover()[method].options
        small = {name: value for name, value in SMALL.items() if name in own}
        targets = ["q_proj", "k_proj", "down_proj"] if is_causal else ["query", "value", "intermediate.dense"]
        fields = {
            "target_modules": targets,
            "task_type": task_type,
            "init_weights": False,
            **small,
            **options,
        }
        peft.get_peft_model(model, rankfold.config(method, **fields)).save_pretrained(folder)
    return folder


def edit_json(path, **changes):
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))
