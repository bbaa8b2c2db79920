"""Supervised fine-tuning with TRL's SFTTrainer: our configuration where PEFT's LoraConfig stood.

Needs `pip install trl`; run it with `python examples/with_sft_trainer.py`.
"""

import tempfile

import datasets
import torch
import trl
from tiny import questions, tiny_llama, tiny_tokenizer

import rankfold


def main() -> None:
    """Train on chats, the loss on the assistant's words alone, and print how it fell."""
    torch.manual_seed(0)
    chats = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer, _ in questions()
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            tiny_llama(),
            trl.SFTConfig(
                folder,
                max_steps=40,
                per_device_train_batch_size=6,
                learning_rate=1e-2,
                logging_steps=5,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=datasets.Dataset.from_list(chats),
            processing_class=tiny_tokenizer(),
            peft_config=rankfold.config("tlora", r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}")


if __name__ == "__main__":
    main()
