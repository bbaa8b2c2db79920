"""Fine-tuning with transformers' Trainer: an adapter of rankfold is a PEFT model, so nothing is special.

Run it with `python examples/with_trainer.py`; a small random model and made-up data keep it to a few seconds.
"""

import tempfile

import peft
import torch
import transformers

import rankfold

VOCABULARY, LENGTH, ROWS = 100, 12, 128


def made_up_rows() -> list[dict[str, torch.Tensor]]:
    """Return sequences of tokens; the label says whether they come from the upper half of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (ROWS,), generator=generator)
    tokens = torch.randint(0, VOCABULARY // 2, (ROWS, LENGTH), generator=generator)
    tokens = tokens + labels[:, None] * (VOCABULARY // 2)
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]


def main() -> None:
    """Train one adapter and print how the loss fell."""
    torch.manual_seed(0)
    size = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.05,  # random weights about as large as trained ones
    )
    base = transformers.BertForSequenceClassification(size)
    config = rankfold.config("relayed_lora", r=8, k=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            peft.get_peft_model(base, config),
            transformers.TrainingArguments(
                folder,
                num_train_epochs=4,
                per_device_train_batch_size=16,
                learning_rate=2e-2,
                logging_steps=4,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=made_up_rows(),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}")


if __name__ == "__main__":
    main()
