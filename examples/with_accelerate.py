"""A training loop of one's own with Accelerate, on one process or many.

Run it with `python examples/with_accelerate.py`, or on two processes with
`accelerate launch --cpu --num_processes 2 examples/with_accelerate.py`.
"""

import accelerate
import peft
import torch
from tiny import tiny_llama

import rankfold


def main() -> None:
    """Take some steps, each process on rows of its own, and print how the loss fell."""
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(0)
    config = rankfold.config("effilora", r=8, heads=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_llama(), config)
    optimizer = rankfold.optimizer(model, torch.optim.AdamW, lr=1e-2)
    rows = torch.randint(5, 15, (8, 8), generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses: list[float] = []
    for _ in range(20):
        for tokens in loader:
            loss = model(input_ids=tokens, labels=tokens).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    accelerator.print(f"{accelerator.num_processes} processes: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
