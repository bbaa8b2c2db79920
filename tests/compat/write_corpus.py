"""Write the compatibility corpus. This ran once, with rankfold 0.1.0, and stays as its documentation.

It works inside the folder that it writes, so that all paths in the files are relative. Only the checkpoints
hold the folder's absolute path, so choose one that may be published:

    python -m tests.compat.write_corpus /compat-0.1.0
"""

import gzip
import json
import os
import sys
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from torch import nn

import rankfold
from tests.compat.corpus import INPUT_IDS, Toy, open_base, outputs_of
from tests.compat.write_runs import write_data, write_runs
from tests.support.tiny_models import write_bert, write_llama

SMALL = {"r": 2, "k": 2, "inner": 2, "heads": 3, "top_k": 2, "dropout": 0.1}
LAYERS = ["tokens", "linear", "transposed", "picture"]
CUSTOM = {"scaling": "learned", "dropout": 0.1, "r": 2, "rank_up": 3, "target_modules": ["q_proj", "up_proj"]}

# Beside every preset: the method, and options that change what is computed or stored.
SPECIAL = {
    "lora-patterns": (
        "lora",
        {
            "scaling": "alpha_over_sqrt_r",
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "exclude_modules": ["v_proj"],
            "layers_to_transform": [1],
            "rank_pattern": {"down_proj": 1},
            "alpha_pattern": {"q_proj": 3.0},
        },
    ),
    "lora-saved-modules": ("lora", {"modules_to_save": ["lm_head"]}),
    "relayed_lora-paper": ("relayed_lora", {"reading": "paper", "zero": "up", "k": 3, "std": 0.3}),
    "share_lora-up": ("share_lora", {"shared": "up"}),
    "share_lora-both": ("share_lora", {"shared": "both", "scope": "slice"}),
    "effilora-input": ("effilora", {"router_reads": "input", "share": "module_type", "balance_loss": 0.1}),
    "effilora-one-head": ("effilora", {"heads": 1}),
    "graph_moe-one-round": ("graph_moe", {"rounds": 1}),
    "lora_moe-balance": ("lora_moe", {"balance_loss": 0.1, "delta": 0.2}),
    "mola-uneven": ("mola", {"heads": [2, 3], "balance_loss": 0.001}),
    "mole-dense": ("mole", {"mode": "dense"}),
    "nora-even": ("nora", {"split": "even"}),
    "tlora-paper": ("tlora", {"reading": "paper", "seed": 3}),
    "tlora_plus-core": ("tlora_plus", {"train": "core", "rank_up": 3, "alpha": 4.0}),
    "tlora_plus-paper": ("tlora_plus", {"train": "core_and_up", "reading": "paper"}),
}
ON_TOY = ("lora", "lora_fa", "relayed_lora", "nora", "tlora", "tlora_plus")
ON_BERT = ("lora", "relayed_lora", "hydra_lora")
OF_PEFT = {
    "peft-lora": peft.LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM"),
    "peft-ia3": peft.IA3Config(task_type="CAUSAL_LM"),
    "peft-vera": peft.VeraConfig(r=2, task_type="CAUSAL_LM"),
}


def main(folder: Path) -> None:
    """Write everything into a new folder."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write_bases()
    write_adapters()
    write_data()
    write_runs()


def write_bases() -> None:
    """Write the base models."""
    write_bert(Path("bases/bert"))
    write_llama(Path("bases/llama"))
    torch.manual_seed(0)
    save_file(Toy().state_dict(), "bases/toy.safetensors")


def write_adapters() -> None:
    """Write every adapter as a folder, as a packed file, in a store and in an export of the store."""
    bases, outputs = {}, {"input_ids": INPUT_IDS}
    for base in ("llama", "bert", "toy"):
        if base != "bert":  # whose head is new
            outputs[base] = outputs_of(open_base(base, Path()))
    for name, (base, config) in configurations().items():
        bases[name] = base
        outputs[name] = save_adapter(name, base, config)
    Path("adapters.json").write_text(json.dumps(bases, indent=1) + "\n", "utf-8")
    save_file(outputs, "outputs.safetensors")
    for dtype in ("bf16", "fp16"):
        rankfold.pack_adapter("adapters/lora", f"packed/lora-{dtype}.rankfold", dtype=dtype)
    write_store(bases)


def configurations() -> dict[str, tuple[str, peft.PeftConfig]]:
    """Return base model and configuration of every adapter."""
    presets = rankfold.presets.discover()
    cases = {name: ("llama", method_config(name, {}, "CAUSAL_LM")) for name in presets}
    for name, (method, options) in SPECIAL.items():
        cases[name] = ("llama", method_config(method, options, "CAUSAL_LM"))
    for method in ON_TOY:
        cases[f"toy-{method}"] = ("toy", method_config(method, {"target_modules": LAYERS}, None))
    for method in ON_BERT:
        cases[f"bert-{method}"] = ("bert", method_config(method, {}, "SEQ_CLS"))
    diagonal = rankfold.DiagonalSpec("zeros")
    frozen, relay = rankfold.SeededSpec("lecun"), rankfold.RelaySpec(k=2, initial="kaiming")
    cases["custom-diagonal"] = (
        "llama",
        rankfold.RankfoldConfig(**{**CUSTOM, "rank_up": None}, down=frozen, core=diagonal, up=relay),
    )
    cases["custom-routed"] = (
        "llama",
        rankfold.RankfoldConfig(
            **CUSTOM,
            down=rankfold.DenseSpec("lecun"),
            core=rankfold.LowRankSpec(inner=1),
            up=rankfold.DenseSpec("lecun"),
            heads=3,
            share_down="slice",
            router=rankfold.RouterSpec(
                bias=True,
                temperature=0.5,
                top_k=2,
                balance=rankfold.BalanceSpec(kind="switch", coefficient=0.1),
            ),
            seed=5,
        ),
    )
    return cases | {name: ("llama", config) for name, config in OF_PEFT.items()}


def method_config(method: str, options: dict, task_type: str | None) -> peft.PeftConfig:
    """Return the configuration of a method at its smallest."""
    own = rankfold.presets.discover()[method].options
    small = {name: value for name, value in SMALL.items() if name in own}
    return rankfold.config(method, **{"task_type": task_type, **small, **options})


def save_adapter(name: str, base: str, config: peft.PeftConfig) -> torch.Tensor:
    """Train an adapter for a few steps, save it, pack it, and return its outputs."""
    model = peft.get_peft_model(open_base(base, Path()), config)
    train(model)
    model.save_pretrained(f"adapters/{name}")
    Path(f"adapters/{name}/README.md").unlink()
    rankfold.pack_adapter(f"adapters/{name}", f"packed/{name}.rankfold")
    return outputs_of(model.eval())


def train(model: nn.Module) -> None:
    """Make a few large steps, so that nothing is left where it started."""
    torch.manual_seed(1)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in trained.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=0.05)
    target = torch.randn(outputs_of(model.eval()).shape)
    model.train()
    for _ in range(4):
        outputs = model(input_ids=INPUT_IDS)
        loss = (getattr(outputs, "logits", outputs) - target).square().mean()
        loss = loss + rankfold.auxiliary_loss(model, task_type=torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [key for key, value in trained.items() if torch.equal(before[key], value.detach())]
    print(f"{len(trained)} trained tensors, unmoved: {still}")  # noqa: T201


def write_store(bases: dict[str, str]) -> None:
    """Write a store of all adapters, and an export of some."""
    with rankfold.AdapterStore("store.db") as store:
        for index, (name, base) in enumerate(bases.items()):
            store.put(
                f"team/{name}",
                f"adapters/{name}",
                tags={"base": base, "turn": str(index % 3)},
                metrics={"accuracy": index / 64, "loss": 1.0 / (index + 1)},
            )
        records = [record.to_dict() for record in store.list()]
        store.export("store.stream", store.list(tags={"turn": "0"}))
    Path("store.json").write_text(json.dumps(records, indent=1) + "\n", "utf-8")
    Path("store.db.gz").write_bytes(gzip.compress(Path("store.db").read_bytes(), mtime=0))
    Path("store.db").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
