"""A BERT of four layers whose adapters train under a Reducer, in a plain loop."""

import peft
import torch

import rankfold
from tests.integration.models import bert, config_of

LAYERS = 4


def reduced_bert(method="lora", *, layers=LAYERS, targets=("query", "value"), random_start=True, **options):
    """Return a BERT with adapters; with a random start every probe has something to suppress."""
    config = config_of(
        method, **{"target_modules": list(targets), "init_weights": not random_start, **options}
    )
    return peft.get_peft_model(bert(num_hidden_layers=layers), config).train()


def batches(count, seed=0):
    """Return batches of tokens with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(0, 64, (4, 6), generator=generator),
            "labels": torch.randint(0, 3, (4,), generator=generator),
        }
        for _ in range(count)
    ]


def adamw(model):
    """Return AdamW with a weight decay that nothing can miss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.5)


def reducer(loss=None, **options):
    """Return a Reducer that probes and chooses often."""
    needs_probes = options.get("select", "importance") in ("importance", "all")
    often = {"interval": 2, "start_step": 2} if needs_probes else {}
    some = {} if options.get("select") == "all" else {"active_fraction": 0.5}
    options = {**some, **often, **options}
    return rankfold.Reducer(probe_loader=batches(3, seed=9) if needs_probes else None, loss=loss, **options)


def train(model, reducer, optimizer, some, *, each_step=lambda: None):
    """Train on batches in a plain loop; `each_step` is called between the backward pass and the update."""
    for batch in some:
        reducer.before_step()
        model(**batch).loss.backward()
        each_step()
        optimizer.step()
        optimizer.zero_grad()
    return model
