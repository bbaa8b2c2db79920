"""A sharded base with an adapter: FSDP1 by layers, FSDP1 by PEFT's own policy, FSDP2.

Run it with `torchrun --nproc_per_node 2 examples/with_fsdp.py`; without torchrun it is one process.
"""

import os

import peft
import torch
from peft.utils.other import fsdp_auto_wrap_policy
from tiny import tiny_llama
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import rankfold

CPU = torch.device("cpu")
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}


def by_layers(model: nn.Module) -> nn.Module:
    """Shard each layer of the decoder; frozen and trained parameters stay apart."""
    policy = ModuleWrapPolicy({LlamaDecoderLayer})
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=CPU)


def by_peft_policy(model: nn.Module) -> nn.Module:
    """Shard by the policy of PEFT's guide."""
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "LlamaDecoderLayer"
    policy = fsdp_auto_wrap_policy(model)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=CPU)


def by_fsdp2(model: nn.Module) -> nn.Module:
    """Shard each layer of the decoder, in place."""
    for module in model.modules():
        if isinstance(module, LlamaDecoderLayer):
            fully_shard(module)
    return fully_shard(model)


def train(shard: object) -> list[float]:
    """Take some steps on a model sharded so, and return the losses."""
    torch.manual_seed(0)
    config = rankfold.config("tlora", r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = shard(peft.get_peft_model(tiny_llama(), config))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    rows = torch.randint(5, 15, (8, 8), generator=torch.Generator().manual_seed(0))
    tokens = rows.chunk(distributed.get_world_size())[distributed.get_rank()]
    losses: list[float] = []
    for _ in range(20):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def main() -> None:
    """Train in each way, and print how the loss fell."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    distributed.init_process_group("gloo")
    for shard in (by_layers, by_peft_policy, by_fsdp2):
        losses = train(shard)
        if distributed.get_rank() == 0:
            print(f"{shard.__name__}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
