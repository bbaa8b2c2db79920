"""An adapter on a base of 4 bits (bitsandbytes) or 8 bits (torchao), trained on a processor.

Needs `pip install bitsandbytes torchao`; run it with `python examples/with_quantised_base.py`.
"""

import tempfile

import peft
import torch
import transformers
from tiny import questions, tiny_llama, tiny_tokenizer
from torchao.quantization import Int8WeightOnlyConfig

import rankfold

QUANTISATIONS = {
    "bitsandbytes, 4 bits": transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao, 8 bits": transformers.TorchAoConfig(Int8WeightOnlyConfig()),
}


def train(quantisation: object, folder: str) -> list[float]:
    """Train an adapter on the quantised base, and return the losses."""
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantisation, device_map="cpu"
    )
    base = peft.prepare_model_for_kbit_training(base)
    config = rankfold.config("effilora", r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    tokenizer = tiny_tokenizer()
    texts = [f"{question} {right}" for question, right, _ in questions()]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = rankfold.optimizer(model, torch.optim.AdamW, lr=1e-2)
    seen: list[float] = []
    for _ in range(20):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(loss))
    return seen


def main() -> None:
    """Train on each quantised base, and print how the loss fell."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tiny_llama().save_pretrained(folder)
        for name, quantisation in QUANTISATIONS.items():
            losses = train(quantisation, folder)
            print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
