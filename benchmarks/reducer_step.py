"""What resting layers save: time of a training step and bytes kept for the backward pass, by PEFT's LoRA.

MiniLM, all linear layers, r=16, one thread. Every variant is a model of its own in one process; a round runs
each once, in a random order, and only the ratios to PEFT's LoRA in the same rounds mean anything. Bytes are
those of tensors saved for the backward pass, each storage once, parameters left out.

    python benchmarks/reducer_step.py --rounds 15 --out benchmarks/records/reducer_step.json
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import peft
import torch
from ratios import interleave, ratios_of
from torch import Tensor, nn

import rankfold
from rankfold.models.base import resolve_model
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION

TARGETS = {"target_modules": "all-linear", "r": 16}
REFERENCE = "peft:lora"
HALF = {"active_fraction": 0.5}
REDUCERS: Mapping[str, Mapping[str, object] | None] = {
    "everything trains": None,
    "heads of half the layers rest": {**HALF, "select": "random"},
    "half the layers rest": {**HALF, "select": "random", "stop_shared_gradient": True},
    "by importance, 3 probes in 10 steps": {**HALF, "stop_shared_gradient": True, "start_step": 10},
    "lower half rests": {**HALF, "select": "last", "stop_shared_gradient": True},
    "lower half rests, folded": {
        **HALF,
        "select": "last",
        "stop_shared_gradient": True,
        "fold_frozen": True,
    },
}


def adapted(method: str) -> nn.Module:
    """Return MiniLM with an adapter that changes something, in training mode."""
    base = CLASSIFICATION.load(resolve_model("minilm"), ("no", "yes")).model
    if method == REFERENCE:
        config = peft.LoraConfig(lora_alpha=16, task_type="SEQ_CLS", **TARGETS)
    else:
        no_dropout = {"dropout": 0.0} if method == "effilora" else {}
        config = rankfold.config(method, task_type="SEQ_CLS", init_weights=False, **TARGETS, **no_dropout)
    return peft.get_peft_model(base, config).train()


def saved_bytes(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Return what a forward pass keeps for the backward pass, in bytes."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss
    loss.backward()
    model.zero_grad()
    return sum(kept[place].untyped_storage().nbytes() for place in kept.keys() - own)


def step_of(
    model: nn.Module, batch: Mapping[str, Tensor], reducer: rankfold.Reducer | None
) -> Callable[[], None]:
    """Return a function that does one training step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        if reducer is not None:
            reducer.before_step()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure every variant and write the ratios down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, help="begin no round after so many")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = arguments.rows, arguments.tokens
    batch = {"input_ids": torch.randint(1000, 30000, shape), "labels": torch.randint(0, 2, shape[:1])}
    steps, kept = {}, {}
    for name, options in {REFERENCE: None, **REDUCERS}.items():
        model = adapted(name if name == REFERENCE else arguments.method)
        reducer = None if options is None else rankfold.Reducer(probe_loader=[batch], **options).attach(model)
        steps[name] = step_of(model, batch, reducer)
        steps[name]()
        kept[name] = saved_bytes(model, batch)
    # Probes come in some of the steps only: the mean counts them, the median would not.
    times = interleave(steps, arguments.rounds, arguments.seconds)
    ratios = ratios_of(times, REFERENCE, average=statistics.mean)
    for name, ratio in ratios.items():
        ratio["bytes"] = kept[name] / kept[REFERENCE]
    record = {
        "command": f"python benchmarks/reducer_step.py --rounds {arguments.rounds}",
        "method": arguments.method,
        "versions": {"torch": torch.__version__, "peft": peft.__version__, "rankfold": rankfold.__version__},
        "batch": shape,
        "time": {name: ratio["time"] for name, ratio in ratios.items()},
        "saved_bytes": {name: ratio["bytes"] for name, ratio in ratios.items()},
        "ratios": ratios,
    }
    for name in steps:
        print(f"{name:38} time {record['time'][name]:.3f}   bytes {record['saved_bytes'][name]:.3f}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
