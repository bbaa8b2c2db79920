"""A compiled model with an adapter: one graph, the same numbers.

Run it with `python examples/with_torch_compile.py`; compiling takes most of its half minute.
"""

import peft
import torch
from tiny import tiny_llama

import rankfold


def main() -> None:
    """Compile, compare, take some steps, and print how the loss fell."""
    torch.manual_seed(0)
    config = rankfold.config(
        "relayed_lora", r=8, k=4, zero="up", target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(tiny_llama(), config)
    tokens = torch.randint(5, 15, (4, 8), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=tokens).logits
    compiled = torch.compile(model)
    assert torch.allclose(compiled(input_ids=tokens).logits, expected, atol=1e-5)
    optimizer = rankfold.optimizer(model, torch.optim.AdamW, lr=1e-2)
    losses: list[float] = []
    for _ in range(20):
        loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
